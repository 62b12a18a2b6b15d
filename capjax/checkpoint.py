"""Checkpoints of a run, and the self-contained model directory that comes out of it.

A checkpoint (Orbax, asynchronous, atomic) holds everything that an exact resumption needs: the training state, whose
step is the position in the data as well, the progress of validation, the configuration and the vocabulary. None of it
belongs to one process: a run may go on with another number of them.

A model directory holds what captioning needs and nothing else:

    model.json            format version, configuration, scores; names the other two files
    vocabulary-<hash>.json
    weights-<hash>.safetensors

model.json names the other two and is replaced last, so the directory is whole at any moment.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from capjax.config import write_json
from capjax.disk import remove_leftovers, write_atomically
from capjax.errors import CapjaxError
from capjax.text.vocabulary import Vocabulary

MODEL_FORMAT_VERSION = 1
_HEADER_FIELDS = {"weights": str, "weights_sha256": str, "vocabulary": str, "vocabulary_sha256": str}
_HEADER_FIELDS |= {"scores": dict, "config": dict, "encoder": dict | None, "features": dict | None}


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them.

    Use as a context manager: leaving waits for the save in flight.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        """Open the folder, remove what a killed save left behind."""
        directory = directory.absolute()
        if jax.process_index() == 0:
            for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self.directory = directory
        handlers = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, host: dict[str, Any], wait: bool = False) -> None:
        """Save a step in the background; the previous checkpoint stays until this one is whole.

        Args:
            step: updates done.
            state: pytree of device arrays.
            host: JSON values, equal on all processes (progress, configuration, vocabulary).
            wait: return only when it is on disk.

        Raises:
            CapjaxError: if it cannot be written, as the disk is full, or that step or a later one is saved already.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        try:
            is_new = self._manager.save(step, args=args)
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            raise CapjaxError(_cannot_write(self.directory, error)) from None
        if not is_new:
            newest = self._manager.latest_step()
            raise CapjaxError(
                f"expected to save a step after {newest}, the newest in {self.directory}, got {step}; choose another "
                "workdir"
            )

    def read_host(self) -> dict[str, Any] | None:
        """Read the JSON values of the newest checkpoint, None when there is none.

        Raises:
            CapjaxError: if they are damaged.
        """
        if self._manager.latest_step() is None:
            return None
        host = self._read(host=ocp.args.JsonRestore()).host
        # capjax 0.1 saved the same values once for each process.
        return host.get("processes", [host])[0]

    def read_state(self, like: Any) -> Any:
        """Read the state of the newest checkpoint.

        Args:
            like: a state of the shapes, dtypes and shardings to restore to, a dataclass. What a checkpoint of an older
                capjax lacks of it stays as it is.

        Raises:
            CapjaxError: if it is damaged or of another model.
        """
        with self._damage_told():
            saved = self._manager.item_metadata(self._manager.latest_step())["state"].keys()
        fields = {field.name: getattr(like, field.name) for field in dataclasses.fields(like) if field.name in saved}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fields)
        return dataclasses.replace(like, **self._read(state=ocp.args.StandardRestore(abstract)).state)

    def _read(self, **items: Any) -> Any:
        with self._damage_told():
            return self._manager.restore(self._manager.latest_step(), args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CapjaxError(
                f"expected an intact checkpoint of this model at {self.directory / str(self._manager.latest_step())}, "
                f"could not restore it ({reason[:200]}); delete that folder to go on from the one before, or choose "
                "another workdir"
            ) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as failure:
            if error[0] is None:
                raise CapjaxError(_cannot_write(self.directory, failure)) from None


def quiet_orbax() -> None:
    """Let Orbax speak only through what it raises.

    It tells its every thought through absl's logger, and each failed write once more through asyncio's and, when a
    failed save has closed its event loop, as an exception that cannot be raised.
    """

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = report


def _cannot_write(directory: pathlib.Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"expected to write a checkpoint to {directory}, could not ({reason[:200]}); earlier checkpoints are intact"


class ModelDirectory(NamedTuple):
    """The content of a model directory.

    Attributes:
        config: of the run, as JSON values.
        encoder: the encoder's architecture; None if the model was trained on features made elsewhere.
        vocabulary: of its captions.
        variables: of the captioner, the encoder's among them if it has one.
        scores: of the validation that chose it.
        features: the key of the feature store it was trained on; None if it was trained on images.
    """

    config: dict[str, Any]
    encoder: dict[str, Any] | None
    vocabulary: Vocabulary
    variables: dict[str, Any]
    scores: dict[str, float]
    features: dict[str, Any] | None = None


def save_model(directory: str | os.PathLike[str], model: ModelDirectory) -> None:
    """Write a model directory, or replace the one that is there in one step.

    Raises:
        CapjaxError: if it cannot be written; an earlier model stays usable.
    """
    directory = pathlib.Path(directory)
    flat = flax.traverse_util.flatten_dict(model.variables, sep="/")
    content = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in flat.items()})
    weights = f"weights-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    header = {
        "format_version": MODEL_FORMAT_VERSION,
        "weights": weights,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "vocabulary": f"vocabulary-{model.vocabulary.sha256[:16]}.json",
        "vocabulary_sha256": model.vocabulary.sha256,
        "scores": model.scores,
        "features": model.features,
        "encoder": model.encoder,
        "config": model.config,
    }
    try:
        write_atomically(directory / weights, content)
        model.vocabulary.save(directory / header["vocabulary"])
        write_json(directory / "model.json", header)
    except CapjaxError as error:
        raise CapjaxError(f"expected to write a model to {directory}, could not: {error}") from None
    # What the older model had, and what saves that were killed left behind.
    remove_leftovers(directory)
    for pattern in ("weights-*.safetensors", "vocabulary*.json"):
        for old in directory.glob(pattern):
            if old.name not in (weights, header["vocabulary"]):
                old.unlink(missing_ok=True)


def load_model_directory(directory: str | os.PathLike[str]) -> ModelDirectory:
    """Read a model directory, and check that it is whole.

    Raises:
        CapjaxError: if it is none, is damaged, or was written by another version.
    """
    directory = pathlib.Path(directory)
    header = _read_header(directory)
    while True:
        try:
            return _read_model(directory, header)
        except CapjaxError:
            # A training run may have replaced the model between the reading of model.json and of what it names.
            earlier, header = header, _read_header(directory)
            if header == earlier:
                raise


def _read_header(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / "model.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        hint = f"; did you mean {directory / 'model'}?" if (directory / "model" / "model.json").exists() else ""
        raise CapjaxError(f"expected a model directory (with model.json), got {directory}{hint}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CapjaxError(f"expected a model description in {path}, got something else ({error!r})") from None
    if version != MODEL_FORMAT_VERSION:
        raise CapjaxError(
            f"expected model format {MODEL_FORMAT_VERSION} in {directory}, got {version}; use the capjax that wrote it"
        )
    header = {"vocabulary": "vocabulary.json", "features": None} | header  # as capjax 0.1 wrote it
    wrong = [name for name, kind in _HEADER_FIELDS.items() if not isinstance(header.get(name, ...), kind)]
    if wrong:
        raise CapjaxError(
            f"expected a usable {wrong[0]!r} in {path}, found none; copy the model again or train it anew"
        )
    for name in ("weights", "vocabulary"):
        if pathlib.PurePath(header[name]).name != header[name] or not header[name].isprintable():
            raise CapjaxError(f"expected the {name} beside {path}, it names {header[name]!r}; do not trust this model")
    return header


def _read_model(directory: pathlib.Path, header: dict[str, Any]) -> ModelDirectory:
    vocabulary = Vocabulary.load(directory / header["vocabulary"])
    if vocabulary.sha256 != header["vocabulary_sha256"]:
        raise CapjaxError(
            f"expected the vocabulary that {directory}/model.json describes, {header['vocabulary']} differs"
        )
    try:
        content = (directory / header["weights"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != header["weights_sha256"]:
            raise CapjaxError(
                f"expected the weights that {directory}/model.json describes, {header['weights']} is damaged"
            )
        variables = flax.traverse_util.unflatten_dict(safetensors.numpy.load(content), sep="/")
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The latter come of numbers of a kind that NumPy does not have, and of names that make no tree.
        raise CapjaxError(f"expected weights in {directory}, could not read {header['weights']} ({error})") from None
    return ModelDirectory(
        header["config"], header["encoder"], vocabulary, variables, header["scores"], header["features"]
    )
