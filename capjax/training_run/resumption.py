"""Where a run goes on: the newest checkpoint of its workdir, if it is of the same run."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from capjax import config as configuration
from capjax.checkpoint import Checkpoints
from capjax.config.fields import flat
from capjax.distributed import check_same
from capjax.errors import CapjaxError
from capjax.host import waiting
from capjax.model_directory import kept_scores
from capjax.sharding import gather_json
from capjax.training.log_window import LogWindow
from capjax.training.progress import Progress
from capjax.training.train_state import TrainState
from capjax.training_run.setup import Setup

# Fields, and sections, that may differ between the run that wrote a checkpoint and the one that resumes from it.
CHANGEABLE = ("recipe", "train.num_steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")
CHANGEABLE += ("train.num_workers", "eval.", "log.", "search.", "mesh.", "dataset.data_dir", "features.dir")
CHANGEABLE += ("features.batch_size",)
# Exceptions: with another value later validations could not be compared with the one that chose the kept model.
COMPARED = ("eval.max_images", "search.max_length")
# Fields that may name another place, but neither come nor go: what lies there is compared, or is in the checkpoint.
PLACES = ("encoder.weights", "train.init_from")
# Fields in which the processes of one run may differ.
OF_A_HOST = ("dataset.data_dir", "features.dir", "train.num_workers", *PLACES)


DATA = {
    "vocabulary_sha256": "training captions",
    "records_sha256": "training captions",
    "images_sha256": "training images",
    "val_records_sha256": "validation captions",
    "val_images_sha256": "validation images",
}
"""What must be as it was, by the name of what identifies it."""


def restore(
    checkpoints: Checkpoints, setup: Setup, data_identity: Mapping[str, Any], state: TrainState
) -> tuple[TrainState, Progress, LogWindow]:
    """Return the state of the newest checkpoint, what it knows of validations, and the log line that was begun.

    Where there is no checkpoint these are `state`, and the two that a run begins with.

    Raises:
        CapjaxError: if the checkpoint is damaged, or of another configuration, other captions, images, features or
            encoder.
    """
    host = checkpoints.read_host()
    if host is None:
        return state, Progress(), LogWindow()
    workdir = checkpoints.directory.parent
    with checkpoints.damage_told():
        old = configuration.from_dict(host["config"], str(checkpoints.directory))
        values, begun = dict(host["progress"]), LogWindow(host.get("log_window", ()))
    places = PLACES if "encoder" in host else ()  # older checkpoints do not know which encoder saw the images
    _check_same_run(configuration.to_dict(old), configuration.to_dict(setup.config), workdir, places)
    for name, what in DATA.items():
        before, now = host.get(name), data_identity[name]
        if name == "vocabulary_sha256" and setup.start:
            what = "vocabulary of train.init_from"
        if before and now and before != now:  # older checkpoints, and older datasets, know fewer of them
            raise CapjaxError(f"expected the {what} that {workdir} was begun with, got others; choose another workdir")
    if host.get("features", data_identity["features"]) != data_identity["features"]:
        found = f"{setup.config.features.dir} holds others" if setup.config.features.dir else "features.dir is empty"
        raise CapjaxError(
            f"expected the features that {workdir} was begun with, {found}; name those with --config.features.dir, or "
            "choose another workdir"
        )
    if host.get("encoder", data_identity["encoder"]) != data_identity["encoder"]:
        raise CapjaxError(
            f"expected the encoder that {workdir} was begun with, {setup.config.encoder.weights} holds another; name "
            "that one with --config.encoder.weights, or choose another workdir"
        )
    state = checkpoints.read_state(state)  # of the same shapes, as the configuration is the same
    with checkpoints.damage_told():
        if "evals_since_best" in values:
            values = _progress_of_0_1(values, old, int(state.step))
        progress = Progress.from_dict(values)
    kept = kept_scores(workdir / "model")
    if progress.validated_step < kept.get("step", 0) <= int(state.step) and f"val/{old.eval.best_metric}" in kept:
        # It was validated after its step was saved, by a run that ended without another one.
        progress = progress.after(int(kept["step"]), kept, old.eval.best_metric)
    if 0 < kept.get("step", 0) <= int(state.step) and kept["step"] != progress.best_step:
        # It took the place of a better one that had been moved away, by a run that ended without another checkpoint.
        progress = dataclasses.replace(progress, best_step=int(kept["step"]), best_scores=kept)
    if progress.best_scores and not kept:
        if jax.process_index() == 0:
            gone = f"the best model, of step {progress.best_step}, is no longer in {workdir / 'model'}"
            tqdm.write(f"{gone}: the present one is kept until there is a better one", file=sys.stderr)
        progress = dataclasses.replace(progress, best_step=0, best_scores={}, validations_since_best=0)
    if old.eval.best_metric != setup.config.eval.best_metric:  # which has its own patience
        progress = dataclasses.replace(progress, validations_since_best=0)
    return state, progress, begun


def check_same_run_on_all(checkpoints: Checkpoints, setup: Setup, data_identity: Mapping[str, Any]) -> None:
    """Refuse processes of which each would train something else, on all of them.

    Raises:
        CapjaxError: naming what differs.
    """
    fields = {name: value for name, value in flat(setup.config).items() if name not in OF_A_HOST}
    check_same(fields, "configuration")
    check_same(dict(data_identity), "data")
    for _ in range(waiting.SECONDS_TO_APPEAR):
        steps = gather_json(checkpoints.newest_step)
        if len(set(steps)) == 1:
            return
        time.sleep(1)
        checkpoints.look_again()
    told = ", ".join(f"process {i} finds {step}" for i, step in enumerate(steps))
    raise CapjaxError(
        f"expected one newest checkpoint in {checkpoints.directory} on all processes of the run, {told}; name a "
        "workdir that all of them mount"
    )


def save(
    checkpoints: Checkpoints,
    setup: Setup,
    data_identity: Mapping[str, Any],
    state: TrainState,
    step: int,
    progress: Progress,
    window: LogWindow,
) -> None:
    """Save everything that `restore` needs, in the background.

    Raises:
        CapjaxError: if it cannot be written.
    """
    host = {
        "progress": progress.to_dict(),
        "config": configuration.to_dict(setup.config),
        "vocabulary": list(setup.vocabulary.words),
        "log_window": window.rows,
        **data_identity,
    }
    checkpoints.save(step, state, host)


def _progress_of_0_1(values: Mapping[str, Any], config: ConfigDict, step: int) -> dict[str, Any]:
    """Translate the progress that capjax 0.1 saved at a step; it validated before it saved."""
    if values["best"] is None:
        return {}
    is_last = step == config.train.num_steps
    return {
        "validated_step": step if is_last else step - step % config.eval.every,
        "best_step": values["best_step"],
        "best_scores": {f"val/{config.eval.best_metric}": values["best"]},
        "validations_since_best": values["evals_since_best"],
    }


def _check_same_run(
    old: Mapping[str, Any], new: Mapping[str, Any], workdir: pathlib.Path, places: Sequence[str], prefix: str = ""
) -> None:
    """Refuse to resume a run with another configuration, but that `places` may be others.

    Raises:
        CapjaxError: naming the first field that differs and must not.
    """
    for name in sorted({*old, *new}):
        full = prefix + name
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            _check_same_run(old[name], new[name], workdir, places, full + ".")
        elif full in places and old.get(name) and new.get(name):
            continue
        elif old.get(name) != new.get(name) and (full in COMPARED or not full.startswith(CHANGEABLE)):
            raise CapjaxError(
                f"expected {full} = {old.get(name)!r} as {workdir} was begun with, got {new.get(name)!r}; "
                "choose another workdir to start anew"
            )
