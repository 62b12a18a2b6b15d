"""Checkpoints of a run, and the self-contained model directory that comes out of it.

A checkpoint (Orbax, asynchronous, atomic) holds everything that an exact resumption needs: the training state, the
data iterator's state, the progress of validation, the configuration and the vocabulary.

A model directory holds what captioning needs and nothing else:

    model.json            format version, configuration, preprocessing, scores; names the weights file
    vocabulary.json
    weights-<hash>.safetensors

model.json is replaced last, so the directory is whole at any moment.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from capjax.config import write_json
from capjax.errors import CapjaxError
from capjax.text.vocabulary import Vocabulary

MODEL_FORMAT_VERSION = 1


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    step: int
    state: Any
    host: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them.

    Use as a context manager: leaving waits for the save in flight.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        """Open the folder, remove what a killed save left behind."""
        # Orbax tells its every thought through absl's logger, and each failed write once more through asyncio's; what
        # matters of it is raised by `save` and on leaving.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sys.unraisablehook = _without_closed_loops
        directory = directory.absolute()
        if jax.process_index() == 0:
            for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self.directory = directory
        self._manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, state: Any, host: dict[str, Any], wait: bool = False) -> None:
        """Save a step in the background; the previous checkpoint stays until this one is whole.

        Args:
            step: updates done.
            state: pytree of device arrays.
            host: JSON values of this process (data iterator, progress, configuration, vocabulary).
            wait: return only when it is on disk.

        Raises:
            CapjaxError: if it cannot be written, e.g. because the disk is full.
        """
        if step in self._manager.all_steps():
            return
        # Every process has an iterator of its own.
        hosts = _gather_json(host)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave({"processes": hosts}))
        try:
            self._manager.save(step, args=args)
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            raise CapjaxError(_cannot_write(self.directory, error)) from None

    def restore(self, like: Any) -> Restored | None:
        """Restore the newest checkpoint.

        Args:
            like: a state of the shapes, dtypes and shardings to restore to.

        Returns:
            What was saved, or None when there is no checkpoint.

        Raises:
            CapjaxError: if it is damaged or of another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CapjaxError(
                f"expected an intact checkpoint of this model at {self.directory / str(step)}, could not restore it "
                f"({reason[:200]}); delete that folder to go on from the one before, or choose another workdir"
            ) from None
        hosts = restored.host["processes"]
        if len(hosts) != jax.process_count():
            raise CapjaxError(
                f"expected to resume with the {len(hosts)} processes that wrote {self.directory}, "
                f"got {jax.process_count()}"
            )
        return Restored(step, restored.state, hosts[jax.process_index()])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as failure:
            if error[0] is None:
                raise CapjaxError(_cannot_write(self.directory, failure)) from None


def _without_closed_loops(unraisable: Any) -> None:
    """Report exceptions that cannot be raised, but those of writes that end after a failed save closed their loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _cannot_write(directory: pathlib.Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"expected to write a checkpoint to {directory}, could not ({reason[:200]}); earlier checkpoints are intact"


def _gather_json(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Collect a JSON value from every process, in process order, on all of them."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.asarray(content.size)).max())
    padded = multihost_utils.process_allgather(np.pad(content, (0, longest - content.size), constant_values=32))
    return [json.loads(bytes(row)) for row in padded]


class ModelDirectory(NamedTuple):
    """The content of a model directory."""

    config: dict[str, Any]
    encoder: dict[str, Any] | None
    vocabulary: Vocabulary
    variables: dict[str, Any]
    scores: dict[str, float]


def save_model(directory: str | os.PathLike[str], model: ModelDirectory) -> None:
    """Write a model directory, or replace the one that is there in one step.

    Raises:
        CapjaxError: if it cannot be written; an earlier model stays usable.
    """
    directory = pathlib.Path(directory)
    flat = flax.traverse_util.flatten_dict(model.variables, sep="/")
    content = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in flat.items()})
    weights = f"weights-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{weights}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, directory / weights)
        model.vocabulary.save(directory / "vocabulary.json")
        header = {
            "format_version": MODEL_FORMAT_VERSION,
            "weights": weights,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "vocabulary_sha256": model.vocabulary.sha256,
            "scores": model.scores,
            "encoder": model.encoder,
            "config": model.config,
        }
        write_json(directory / "model.json", header)
    except OSError as error:
        for leftover in directory.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        raise CapjaxError(f"expected to write a model to {directory}, could not ({error})") from None
    for old in directory.glob("weights-*.safetensors"):
        if old.name != weights:
            old.unlink()


def load_model_directory(directory: str | os.PathLike[str]) -> ModelDirectory:
    """Read a model directory, and check that it is whole.

    Raises:
        CapjaxError: if it is none, is damaged, or was written by another version.
    """
    directory = pathlib.Path(directory)
    try:
        header = json.loads((directory / "model.json").read_text())
        version = header["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        hint = f"; did you mean {directory / 'model'}?" if (directory / "model" / "model.json").exists() else ""
        raise CapjaxError(f"expected a model directory (with model.json), got {directory}{hint}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CapjaxError(
            f"expected a model description in {directory}/model.json, got something else ({error})"
        ) from None
    if version != MODEL_FORMAT_VERSION:
        raise CapjaxError(
            f"expected model format {MODEL_FORMAT_VERSION} in {directory}, got {version}; use the capjax that wrote it"
        )
    vocabulary = Vocabulary.load(directory / "vocabulary.json")
    try:
        content = (directory / header["weights"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != header["weights_sha256"]:
            raise CapjaxError(
                f"expected the weights that {directory}/model.json describes, {header['weights']} is damaged"
            )
        flat = safetensors.numpy.load(content)
    except (OSError, safetensors.SafetensorError) as error:
        raise CapjaxError(f"expected weights in {directory}, could not read {header['weights']} ({error})") from None
    if vocabulary.sha256 != header["vocabulary_sha256"]:
        raise CapjaxError(f"expected the vocabulary that {directory}/model.json describes, vocabulary.json differs")
    variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    return ModelDirectory(header["config"], header["encoder"], vocabulary, variables, header["scores"])
