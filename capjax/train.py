"""The training loop: `capjax train --config=FILE --workdir=DIR`. The same command resumes.

A workdir holds config.json, metrics.jsonl, curves.png, checkpoints/ to resume from, tensorboard/, and model/, the best
model so far as a self-contained directory.
"""

import argparse
import dataclasses
import math
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from capjax import assembly
from capjax import config as configuration
from capjax.checkpoint import Checkpoints, ModelDirectory, save_model
from capjax.data.input_pipeline import image_batches, training_batches, validation_batches
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.metrics import coco_caption
from capjax.predict import Generator
from capjax.report import read_log, write_curves
from capjax.sharding import add_process_arguments, check_divides, join_processes, make_mesh, replicate, shard_batch
from capjax.text.vocabulary import Vocabulary
from capjax.training.metric_writer import MetricWriter
from capjax.training.optimizer import make_optimizer
from capjax.training.schedules import make_schedule
from capjax.training.train_state import TrainState, num_parameters, parameter_overview
from capjax.training.xe_step import jit_train_step, jit_validation_step

# Fields that may differ between the run that wrote a checkpoint and the one that resumes from it.
CHANGEABLE = ("train.num_steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")
CHANGEABLE += ("train.num_workers", "eval.", "search.", "dataset.data_dir", "features.dir", "features.batch_size")

LARGER_IS_BETTER = {"CIDEr-D": True, "accuracy": True, "loss": False}


def train(config: ConfigDict, workdir: pathlib.Path) -> TrainState:
    """Train a captioner, or go on where an earlier call stopped.

    Args:
        config: see `capjax.config.default_config`.
        workdir: of the run.

    Returns:
        The state after the last step.

    Raises:
        CapjaxError: if something in the configuration, the data or the workdir does not fit, or the loss is not finite.
    """
    mesh = make_mesh()
    lead = jax.process_index() == 0
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    check_divides(config.train.batch_size // config.train.captions_per_image, "images in train.batch_size")
    check_divides(config.eval.batch_size, "eval.batch_size")
    if config.eval.best_metric not in LARGER_IS_BETTER:
        raise CapjaxError(
            f"expected eval.best_metric out of {sorted(LARGER_IS_BETTER)}, got {config.eval.best_metric!r}"
        )

    # Data.
    encoder = assembly.encoder_from(config)
    records, rows = assembly.split_from(config, config.dataset.train_split, encoder)
    vocabulary = Vocabulary.build((c for r in records for c in r.captions), **config.vocabulary.to_dict())
    batches = training_batches(
        records,
        rows,
        vocabulary,
        batch_size=config.train.batch_size,
        captions_per_image=config.train.captions_per_image,
        max_tokens=config.train.max_tokens,
        seed=config.seed,
        augment=config.train.augment,
        num_workers=config.train.num_workers,
        **processes,
    )

    # Model. One fed from cached features leaves its encoder to the model directory.
    fed_images = not config.features.dir
    model = assembly.captioner_from(config, len(vocabulary), encoder.config if fed_images else None)
    features = assembly.first_features(rows, encoder, config.encoder.grid)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    variables = assembly.initial_variables(model, init_key, features, encoder)

    # Optimiser, state, steps.
    section = config.optimizer
    schedule = make_schedule(
        section.schedule,
        section.learning_rate,
        config.train.num_steps,
        section.warmup_steps,
        section.decay_steps,
        section.decay_rate,
    )
    settings = {"weight_decay": section.weight_decay} if section.weight_decay else {}
    optimizer = make_optimizer(
        section.name,
        schedule,
        clip_norm=section.clip_norm,
        encoder_scale=config.encoder.learning_rate_scale if fed_images else 0.0,
        **settings,
    )
    state = replicate(TrainState.create(variables, optimizer), mesh)
    del variables
    train_step = jit_train_step(
        mesh,
        model=model,
        optimizer=optimizer,
        label_smoothing=config.train.label_smoothing,
        accumulate_steps=config.train.accumulate_steps,
    )
    validation = Validation(config, model, encoder, vocabulary, mesh)

    if lead:
        say(parameter_overview(state.params))
        say(
            f"{num_parameters(state.params):,} parameters; {len(records):,} images, vocabulary of {len(vocabulary):,}, "
            f"{jax.device_count()} {jax.devices()[0].platform} device(s) in {jax.process_count()} process(es)"
        )

    # Resume, then loop.
    workdir.mkdir(parents=True, exist_ok=True)
    progress = {"best": None, "best_step": 0, "evals_since_best": 0}
    with Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            check_same_run(restored.host["config"], configuration.to_dict(config), workdir)
            if restored.host["vocabulary_sha256"] != vocabulary.sha256:
                raise CapjaxError(f"expected the training captions that {workdir} was begun with, they have changed")
            state, progress = restored.state, restored.host["progress"]
            batches.set_state(restored.host["batches"])
        first_step = int(state.step)
        if lead:
            configuration.write_json(workdir / "config.json", configuration.to_dict(config))
            say(f"resuming {workdir} from step {first_step}" if first_step else f"starting {workdir}")

        def checkpoint(step: int) -> None:
            host = {
                "batches": batches.get_state(),
                "progress": progress,
                "config": configuration.to_dict(config),
                "vocabulary": list(vocabulary.words),
                "vocabulary_sha256": vocabulary.sha256,
            }
            checkpoints.save(step, state, host)

        def keep_if_best(step: int, scores: dict[str, float]) -> None:
            name = config.eval.best_metric
            value = scores[f"val/{name}"]
            sign = 1 if LARGER_IS_BETTER[name] else -1
            better = progress["best"] is None or sign * value > sign * progress["best"]
            progress.update({"evals_since_best": 0 if better else progress["evals_since_best"] + 1})
            if better:
                progress.update({"best": value, "best_step": step})
                if lead:
                    directory = model_directory(config, state, encoder, vocabulary, scores | {"step": step})
                    save_model(workdir / "model", directory)

        with (
            MetricWriter(workdir, first_step, enabled=lead) as writer,
            tqdm(total=config.train.num_steps, initial=first_step, unit="step", disable=None if lead else True) as bar,
            stop_on_signal() as stop,
        ):
            window, window_start = [], time.perf_counter()
            step = first_step
            while step < config.train.num_steps:
                batch = shard_batch(next(batches), mesh)
                state, metrics = train_step(state, batch, step_key)
                step += 1
                bar.update()
                window.append(metrics)
                last = step == config.train.num_steps

                if step % config.train.log_every == 0 or last or stop:
                    scalars = summarise(window, first=step - len(window) + 1, state=state, workdir=workdir)
                    scalars["train/words_per_second"] = scalars.pop("num_words") / (time.perf_counter() - window_start)
                    writer.write(step, scalars | {"learning_rate": float(schedule(step - 1))})
                    bar.set_postfix(loss=f"{scalars['train/loss']:.3f}")
                    window, window_start = [], time.perf_counter()
                if (step % config.eval.every == 0 or last) and not stop:
                    scores = validation(state)
                    writer.write(step, scores)
                    if lead:
                        say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
                    keep_if_best(step, scores)
                    window_start = time.perf_counter()
                out_of_patience = 0 < config.eval.patience <= progress["evals_since_best"]
                if step % config.train.checkpoint_every == 0 or last or stop or out_of_patience:
                    checkpoint(step)
                if stop:
                    raise CapjaxError(
                        f"interrupted after step {step}, which is saved; the same command goes on from there"
                    )
                if out_of_patience:
                    if lead:
                        say(f"stopping early: val/{config.eval.best_metric} was best at step {progress['best_step']}")
                    break
        if lead and progress["best"] is not None:
            say(
                f"best val/{config.eval.best_metric} {progress['best']:.4f} at step {progress['best_step']}; "
                f"model in {workdir / 'model'}"
            )
    return state


def say(message: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(message, file=sys.stderr)


class Validation:
    """Loss, perplexity, next-word accuracy and greedy CIDEr-D on the validation split."""

    def __init__(self, config: ConfigDict, model: Any, encoder: Any, vocabulary: Vocabulary, mesh: Any) -> None:
        """Open the split and compile the steps lazily."""
        records, self._rows = assembly.split_from(config, config.dataset.val_split, encoder)
        self._records = records[: config.eval.max_images or None]
        if not any(record.captions for record in self._records):
            raise CapjaxError(f"expected captions in the validation split {config.dataset.val_split!r}, it has none")
        self._vocabulary, self._mesh, self._batch_size = vocabulary, mesh, config.eval.batch_size
        self._max_tokens = config.train.max_tokens
        # Images are encoded once for all of their captions; features can as well be repeated.
        most = max(len(record.captions) for record in self._records)
        self._captions_per_image = min(5, most) if not config.features.dir else 1
        self._processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        self._step = jit_validation_step(mesh, model=model)
        self._generator = Generator([model], vocabulary, DecoderSettings(max_length=config.search.max_length), mesh)
        self._references = coco_caption.References({r.image_id: r.captions for r in self._records if r.captions})

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Score a state; equal on all processes."""
        totals = None
        for batch in validation_batches(
            self._records,
            self._rows,
            self._vocabulary,
            batch_size=self._batch_size * self._captions_per_image,
            captions_per_image=self._captions_per_image,
            max_tokens=self._max_tokens,
            **self._processes,
        ):
            sums = np.asarray(self._step(state, shard_batch(batch, self._mesh)), np.float64)
            totals = sums if totals is None else totals + sums
        loss, correct, count = totals
        batches = image_batches(self._records, self._rows, batch_size=self._batch_size, **self._processes)
        captions = {c.image_id: c.text for c in self._generator([state.variables], batches)}
        hypotheses = {image_id: captions[image_id] for image_id in self._references.image_ids}
        cider_d = coco_caption.score(self._references, hypotheses, metrics=("CIDEr-D",)).corpus["CIDEr-D"]
        return {
            "val/loss": loss / count,
            "val/perplexity": math.exp(min(loss / count, 700.0)),
            "val/accuracy": correct / count,
            "val/CIDEr-D": cider_d,
        }


def summarise(
    window: list[dict[str, jax.Array]], first: int, state: TrainState, workdir: pathlib.Path
) -> dict[str, float]:
    """Average the metrics of the steps since the last log line, weighted by words.

    Raises:
        CapjaxError: if a loss or gradient was not finite; the state, which left those updates out, is saved first.
    """
    values = jax.device_get(window)
    for offset, metrics in enumerate(values):
        if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])):
            rescue = workdir / "nonfinite"
            with Checkpoints(rescue, keep=1) as checkpoints:
                checkpoints.save(first + offset, state, {}, wait=True)
            raise CapjaxError(
                f"the loss or its gradient was not finite at step {first + offset} (loss {metrics['loss']}, "
                f"gradient norm {metrics['gradient_norm']}); the state without that update is in {rescue}; lower the "
                "learning rate or set optimizer.clip_norm, and resume from the checkpoint before"
            )
    words = np.asarray([metrics["num_words"] for metrics in values], np.float64)
    weights = words / max(words.sum(), 1.0)
    mean = {name: float(np.dot(weights, [metrics[name] for metrics in values])) for name in values[0]}
    return {f"train/{name}": mean[name] for name in mean if name != "num_words"} | {"num_words": float(words.sum())}


def model_directory(
    config: ConfigDict, state: TrainState, encoder: Any, vocabulary: Vocabulary, scores: dict[str, float]
) -> ModelDirectory:
    """Gather what captioning needs of a state, on the host."""
    variables = jax.tree.map(np.asarray, assembly.with_encoder({"params": dict(state.params)}, encoder))
    if state.batch_stats:
        variables["batch_stats"] = jax.tree.map(np.asarray, state.batch_stats)
    architecture = dataclasses.asdict(encoder.config) if encoder else None
    return ModelDirectory(configuration.to_dict(config), architecture, vocabulary, variables, scores)


def check_same_run(old: dict[str, Any], new: dict[str, Any], workdir: pathlib.Path, prefix: str = "") -> None:
    """Refuse to resume a run with another configuration.

    Raises:
        CapjaxError: naming the first field that differs and must not.
    """
    for name in sorted({*old, *new}):
        full = prefix + name
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            check_same_run(old[name], new[name], workdir, full + ".")
        elif old.get(name) != new.get(name) and not full.startswith(CHANGEABLE):
            raise CapjaxError(
                f"expected {full} = {old.get(name)!r} as {workdir} was begun with, got {new.get(name)!r}; "
                "choose another workdir to start anew"
            )


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that the step under way ends and is saved; a second one kills.

    With several processes signals keep their usual effect, since all would have to stop at the same step.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        for handled in previous:
            signal.signal(handled, previous[handled])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax train`."""
    configuration.add_config_arguments(parser)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run; resumes what it holds")
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and draw the curves."""
    config = configuration.load_config(args.config, args.overrides)
    join_processes(args)
    try:
        train(config, args.workdir)
    finally:
        log = args.workdir / "metrics.jsonl"
        if jax.process_index() == 0 and log.exists() and read_log(log):
            try:
                write_curves(args.workdir / "curves.png", read_log(log))
            except CapjaxError as error:  # the run's own error, if any, matters more
                say(f"no curves: {error}")
    return 0
