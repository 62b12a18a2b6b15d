"""Where a run goes on: the newest checkpoint of its workdir, if it is of the same run."""

import pathlib
from collections.abc import Mapping
from typing import Any

from capjax import config as configuration
from capjax.checkpoint import Checkpoints
from capjax.errors import CapjaxError
from capjax.training.progress import Progress
from capjax.training.train_state import TrainState
from capjax.training_setup import Setup

# Fields that may differ between the run that wrote a checkpoint and the one that resumes from it.
CHANGEABLE = ("recipe", "train.num_steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")
CHANGEABLE += ("train.num_workers", "eval.", "search.", "dataset.data_dir", "features.dir", "features.batch_size")


def restore(checkpoints: Checkpoints, setup: Setup, state: TrainState) -> tuple[TrainState, Progress]:
    """Return the state and progress of the newest checkpoint, or `state` and no progress where there is none.

    Raises:
        CapjaxError: if the checkpoint is damaged, or of another configuration or other captions.
    """
    restored = checkpoints.restore(state)
    if restored is None:
        return state, Progress()
    workdir = checkpoints.directory.parent
    old = configuration.from_dict(restored.host["config"], str(checkpoints.directory))
    _check_same_run(configuration.to_dict(old), configuration.to_dict(setup.config), workdir)
    if restored.host["vocabulary_sha256"] != setup.vocabulary.sha256:
        raise CapjaxError(
            f"expected the training captions that {workdir} was begun with, they have changed; choose another workdir"
        )
    return restored.state, Progress.from_dict(restored.host["progress"])


def save(checkpoints: Checkpoints, setup: Setup, state: TrainState, step: int, progress: Progress) -> None:
    """Save everything that `restore` needs, in the background.

    Raises:
        CapjaxError: if it cannot be written.
    """
    host = {
        "progress": progress.to_dict(),
        "config": configuration.to_dict(setup.config),
        "vocabulary": list(setup.vocabulary.words),
        "vocabulary_sha256": setup.vocabulary.sha256,
    }
    checkpoints.save(step, state, host)


def _check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: pathlib.Path, prefix: str = "") -> None:
    """Refuse to resume a run with another configuration.

    Raises:
        CapjaxError: naming the first field that differs and must not.
    """
    for name in sorted({*old, *new}):
        full = prefix + name
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            _check_same_run(old[name], new[name], workdir, full + ".")
        elif old.get(name) != new.get(name) and not full.startswith(CHANGEABLE):
            raise CapjaxError(
                f"expected {full} = {old.get(name)!r} as {workdir} was begun with, got {new.get(name)!r}; "
                "choose another workdir to start anew"
            )
