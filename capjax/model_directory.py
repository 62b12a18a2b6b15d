"""The self-contained model directory that comes out of a run.

It holds what captioning needs and nothing else:

    model.json            format version, configuration, scores; names the other two files
    vocabulary-<hash>.json
    weights-<hash>.safetensors

model.json names the other two and is replaced last, so the directory is whole at any moment. The README.md that
training writes beside them is for people (`capjax.report.model_card`).
"""

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from capjax.errors import CapjaxError
from capjax.host import waiting
from capjax.host.disk import remove_leftovers, write_atomically, write_json
from capjax.sharding import gather_json
from capjax.text.vocabulary import Vocabulary

T = TypeVar("T")

MODEL_FORMAT_VERSION = 1
_HEADER_FIELDS = {"weights": str, "weights_sha256": str, "vocabulary": str, "vocabulary_sha256": str}
_HEADER_FIELDS |= {"scores": dict, "config": dict, "encoder": dict | None, "features": dict | None}


class ModelDirectory(NamedTuple):
    """The content of a model directory.

    Attributes:
        config: of the run, as JSON values.
        encoder: the encoder's architecture; None if the model was trained on features made elsewhere.
        vocabulary: of its captions.
        variables: of the captioner, the encoder's among them if it has one.
        scores: of the validation that chose it.
        features: the key of the feature store it was trained on; None if it was trained on images.
        weights_sha256: of the file of the weights, once there is one.
    """

    config: dict[str, Any]
    encoder: dict[str, Any] | None
    vocabulary: Vocabulary
    variables: dict[str, Any]
    scores: dict[str, float]
    features: dict[str, Any] | None = None
    weights_sha256: str = ""


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
    """Read a model directory, and check that it is whole; to be called on all processes of a run, which get the same.

    Raises:
        CapjaxError: if it is none, is damaged, or was written by another version.
    """
    directory = pathlib.Path(directory)

    def read() -> tuple[ModelDirectory, dict[str, Any]]:
        while True:
            which = _last_replaced(directory)
            try:
                header = _read_header(directory)
                return _read_model(directory, header), header
            except CapjaxError:
                # A training run may have replaced the model between the reading of model.json and of what it names.
                if _last_replaced(directory) == which:
                    raise

    return _read_alike(directory, read)


def kept_scores(directory: pathlib.Path) -> dict[str, Any]:
    """Read the scores of a model directory, none where there is no model; to be called on all processes of a run."""

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            scores = read_scores(directory)
        except CapjaxError:
            scores = {}
        return scores, scores

    return _read_alike(directory, read)


def read_scores(directory: pathlib.Path) -> dict[str, Any]:
    """Read the scores of the validation that chose the model in a directory, and its `step`.

    Raises:
        CapjaxError: if there is none.
    """
    return _read_header(directory)["scores"]


def _last_replaced(directory: pathlib.Path) -> tuple[int, int] | None:
    """Return what changes whenever the model is replaced, be it by one that was there before."""
    try:
        status = (directory / "model.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_alike(directory: pathlib.Path, read: Callable[[], tuple[T, dict[str, Any]]]) -> T:
    """Read, again where a training run replaces the model meanwhile, until all processes have read the same.

    Args:
        directory: of the model.
        read: returns what is read, and JSON values that tell it from others.

    Raises:
        CapjaxError: if the directory stays another for one of them.
    """
    if not jax.distributed.is_initialized():
        return read()[0]
    before, seconds_alike = [], 0
    while seconds_alike < waiting.SECONDS_TO_APPEAR:
        found, identity = read()
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        of_all = gather_json([digest, _last_replaced(directory)])
        if len({digest for digest, _ in of_all}) == 1:
            return found
        seconds_alike = seconds_alike + 1 if of_all == before else 0
        before = of_all
        time.sleep(1)
    raise CapjaxError(
        f"expected the same model in {directory} on all processes of the run, it differs between them; name one that "
        "all of them mount"
    )


def _read_header(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / "model.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        hint = f"; did you mean {directory / 'model'}?" if (directory / "model" / "model.json").exists() else ""
        hint = "; this takes one model, not several" if "," in str(directory) else hint
        raise CapjaxError(f"expected a model directory (with model.json), got {directory}{hint}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        # The latter come of numbers of a kind that NumPy does not have, and of names that make no tree.
        raise CapjaxError(f"expected weights in {directory}, could not read {header['weights']} ({error})") from None
    return ModelDirectory(
        header["config"],
        header["encoder"],
        vocabulary,
        variables,
        header["scores"],
        header["features"],
        header["weights_sha256"],
    )
