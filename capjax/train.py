"""The training loop: `capjax train --config=FILE --workdir=DIR`. The same command resumes.

A workdir holds config.json, metrics.jsonl, curves.png, checkpoints/ to resume from, tensorboard/, and model/, the best
model so far as a self-contained directory.
"""

import argparse
import contextlib
import dataclasses
import math
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from capjax import assembly
from capjax import config as configuration
from capjax.checkpoint import Checkpoints, quiet_orbax
from capjax.distributed import add_process_arguments, join_processes, stop_requests
from capjax.errors import CapjaxError, Interrupted
from capjax.host.disk import local_path, write_atomically, write_json
from capjax.metrics.coco_caption import FEW_IMAGES
from capjax.model_directory import ModelDirectory, read_scores, save_model
from capjax.report import model_card, read_log, write_curves
from capjax.report.ledger import asked_of
from capjax.sharding import fetch_state, make_mesh
from capjax.training.epoch_lines import EpochLines
from capjax.training.metric_writer import MetricWriter
from capjax.training.progress import LARGER_IS_BETTER
from capjax.training.train_state import TrainState, num_parameters, parameter_overview
from capjax.training_run import resumption
from capjax.training_run.batch_scaling import scale_batch, scale_of
from capjax.training_run.objectives import make_objective
from capjax.training_run.setup import Setup, setup_from
from capjax.training_run.validation import Validation
from capjax.training_run.validation_summaries import ValidationSummaries
from capjax.training_run.workdir import sole_run


def train(config: ConfigDict, workdir: pathlib.Path) -> TrainState:
    """Train a captioner, or go on where an earlier call stopped.

    Args:
        config: see `capjax.config.default_config`.
        workdir: of the run.

    Returns:
        The state after the last step.

    Raises:
        CapjaxError: if something in the configuration, the data or the workdir does not fit, another process trains
            in the workdir, or the loss is not finite.
        Interrupted: if the run was asked to stop; it has saved its last step.
    """
    # Set up.
    check(config)
    lead = jax.process_index() == 0
    setup = setup_from(config, make_mesh(model_parallel=config.mesh.model_parallel))
    objective = make_objective(setup)
    validate = Validation(setup)
    metric, num_steps = config.eval.best_metric, config.train.num_steps
    state = objective.init()
    params = fetch_state(state.params, setup.mesh)
    if lead:
        announce(setup, params, validate)

    with contextlib.ExitStack() as stack:
        # Resume.
        stack.enter_context(sole_run(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints))
        data_identity = setup.data_identity | validate.data_identity
        resumption.check_same_run_on_all(checkpoints, setup, data_identity)
        state, progress, window = resumption.restore(checkpoints, setup, data_identity, state)
        step = saved_step = int(state.step)
        if lead:
            write_json(workdir / "config.json", configuration.to_dict(config))
            say(f"resuming {workdir} from step {step}" if step else f"starting {workdir}")
        log = stack.enter_context(MetricWriter(workdir, step, progress.validated_step, enabled=lead))
        lines, summaries = epoch_lines(setup, step, workdir), ValidationSummaries(setup, validate.records, state)
        bar = stack.enter_context(tqdm(total=num_steps, initial=step, unit="step", disable=None if lead else True))
        stop_requested = stack.enter_context(stop_requests())
        batches = objective.batches(first_batch=step)

        def log_steps() -> None:
            if scalars := window.summarise():
                log.write(step, scalars | {"learning_rate": objective.learning_rate(step)})
                lines.add(step, scalars)
                bar.set_postfix(loss=f"{scalars['train/loss']:.3f}")

        # Loop: what a step asks for is done before the next one, in the run that did the step or in one that resumes.
        while True:
            stop = stop_requested(step) and step > saved_step
            finished = step >= num_steps
            if step % config.train.log_every == 0 or finished or stop:
                log_steps()
            due = step > progress.validated_step and (step % config.eval.every == 0 or finished)
            # How good is the model to be improved, or the present one where the best was moved away?
            due |= not progress.best_scores and (setup.start is not None or progress.validated_step > 0)
            if due and not stop:
                with window.stopped_clock():
                    scores, captions = validate(state)
                    progress = progress.after(step, scores, metric)
                    log.write(step, scores)
                    lines.add(step, scores)
                    if progress.best_step == step:
                        model = model_directory(setup, state, scores | {"step": step})
                        if lead:
                            save_model(workdir / "model", model)
                            write_atomically(workdir / "model" / "README.md", card_of(config, model))
                    log.show(step, summaries(step, state, captions))
            out_of_patience = 0 < config.eval.patience <= progress.validations_since_best
            if out_of_patience:
                log_steps()
            last = finished or stop or out_of_patience
            if lead and (line := lines.line(step, last=last and not stop)):
                say(line)
            if step > saved_step and (step % config.train.checkpoint_every == 0 or last):
                window.check()
                resumption.save(checkpoints, setup, data_identity, state, step, progress, window)
                saved_step = step
            if last:
                break
            state, metrics = objective.step(state, next(batches))
            step += 1
            window.add(step, metrics)
            bar.update()
    if stop:
        raise Interrupted(f"interrupted after step {step}, which is saved; the same command goes on from there")
    if lead:
        if out_of_patience:
            how = "it would have stopped here" if finished else "stopping early"
            say(f"{how}: val/{metric} has not improved for {progress.validations_since_best} validations")
        # As the folder says: a part of the run that was killed may have come further, and kept the best of that.
        best = read_scores(workdir / "model")
        score = best.get(f"val/{metric}", math.nan)
        say(f"best val/{metric} {score:.4f} at step {best['step']}; model in {workdir / 'model'}")
    return state


def train_and_draw(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Train, and draw the curves, whatever becomes of it; see `train`."""
    quiet_orbax()
    try:
        train(config, workdir)
    finally:
        log = workdir / "metrics.jsonl"
        if jax.process_index() == 0 and log.exists() and read_log(log):
            try:
                write_curves(workdir / "curves.png", read_log(log))
            except CapjaxError as error:  # the run's own error, if any, matters more
                say(f"no curves: {error}")


def check(config: ConfigDict) -> None:
    """Refuse a configuration that cannot be trained with.

    Raises:
        CapjaxError: naming the field.
    """
    configuration.check(config)
    if config.eval.best_metric not in LARGER_IS_BETTER:
        raise CapjaxError(
            f"expected eval.best_metric out of {sorted(LARGER_IS_BETTER)}, got {config.eval.best_metric!r}"
        )


def say(message: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(message, file=sys.stderr)


def announce(setup: Setup, params: Any, validate: Validation) -> None:
    """Say what is going to be trained, on what."""
    say(parameter_overview(params))
    say(
        f"{num_parameters(params):,} parameters; {len(setup.captions.image_ids):,} images, vocabulary of "
        f"{len(setup.vocabulary):,}, {jax.device_count()} {jax.devices()[0].platform} device(s) in "
        f"{jax.process_count()} process(es)"
    )
    if validate.has_few_images:
        say(
            f"fewer than {FEW_IMAGES} validation images: val/CIDEr-D weighs words by the training captions, and is not "
            "the published score; the more images, the surer the choice of the model that is kept"
        )


def epoch_lines(setup: Setup, step: int, workdir: pathlib.Path) -> EpochLines:
    """Make what tells of the run; a run that resumes goes on with what the log of its first `step` steps holds."""
    config = setup.config
    return EpochLines(
        config.train.num_steps,
        config.train.batch_size // config.train.captions_per_image,
        len(setup.captions.captioned_images),
        config.eval.every,
        step,
        read_log(workdir / "metrics.jsonl") if jax.process_index() == 0 else (),
        is_smoothed=config.train.label_smoothing > 0,
    )


def model_directory(setup: Setup, state: TrainState, scores: dict[str, float]) -> ModelDirectory:
    """Gather what captioning needs of a state, on the host of every process."""
    variables = {part: dict(tree) for part, tree in state.eval_variables.items() if tree}
    variables = assembly.with_encoder(fetch_state(variables, setup.mesh), setup.encoder)
    config = setup.config
    return ModelDirectory(
        configuration.to_dict(config),
        dataclasses.asdict(setup.encoder.config) if setup.encoder else None,
        setup.vocabulary,
        variables,
        scores,
        setup.features_key,
    )


def card_of(config: ConfigDict, model: ModelDirectory) -> str:
    """Write the card of a model that was not evaluated yet."""
    asked = asked_of(configuration.changes(config))
    size = num_parameters(model.variables["params"])
    return model_card(model.config, asked, model.encoder, size, len(model.vocabulary), model.scores)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax train`."""
    configuration.add_config_arguments(parser)
    parser.add_argument("--workdir", required=True, type=local_path, help="folder of the run; resumes what it holds")
    parser.add_argument(
        "--scale_batch",
        nargs="?",
        type=int,
        default=1,
        metavar="K",
        help="batches K times as large, by default as many as there are devices; learning rate and steps follow",
    )
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train as the options say."""
    config = configuration.load_config(args.config, args.overrides)
    join_processes(args, stop_together=True)
    scale = args.scale_batch
    if scale is None:  # asked for without a number
        scale = scale_of(args.workdir, config) or max(1, jax.device_count() // config.mesh.model_parallel)
    train_and_draw(scale_batch(config, scale), args.workdir)
    return 0
