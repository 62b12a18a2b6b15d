"""Captions for images: the compiled function from pixels or features to sentences, and `capjax caption`."""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from tqdm import tqdm

from capjax import assembly
from capjax import config as configuration
from capjax.checkpoint import ModelDirectory, load_model_directory
from capjax.decoding.ensemble import ensemble
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.sampling import image_keys
from capjax.decoding.settings import DecoderSettings, build_search
from capjax.errors import CapjaxError
from capjax.images import Preprocessing, decode_image, preprocess
from capjax.models import Captioner
from capjax.pretrained.encoder_file import EncoderConfig
from capjax.sharding import DATA_AXIS, gather_rows, gather_to_host, make_mesh, replicate, shard_batch
from capjax.text.vocabulary import Vocabulary
from capjax.types import Features, SpecialIds

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}


class Caption(NamedTuple):
    """A generated sentence.

    `log_prob` is the natural logarithm, summed over its words and END; `alternatives` are ranked below.
    """

    image_id: int
    text: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...] = ()


class Generator:
    """A model ready to caption batches: searches are compiled once per settings and shape."""

    def __init__(
        self, models: Sequence[Captioner], vocabulary: Vocabulary, settings: DecoderSettings, mesh: Mesh
    ) -> None:
        """Prepare to decode.

        Args:
            models: one captioner, or several that are averaged (an ensemble); all share the vocabulary.
            vocabulary: turns ids into words.
            settings: of the search.
            mesh: the devices that batches are divided over.
        """
        self._vocabulary = vocabulary
        self._mesh = mesh
        self._seed = settings.seed
        search = build_search(settings.with_token_ids(vocabulary.ids), SpecialIds())

        def generate(variables: Sequence[Any], visual: Any, keys: jax.Array) -> Hypotheses:
            steps, carries = [], []
            for model, weights in zip(models, variables, strict=True):
                features = visual if isinstance(visual, Features) else model.apply(weights, visual, method="encode")
                carries.append(model.apply(weights, features, method="init_carry"))
                steps.append(partial(model.apply, weights, method="decode_step"))
            step, carry = (steps[0], carries[0]) if len(models) == 1 else (ensemble(steps), tuple(carries))
            return search(step, carry, jax.random.wrap_key_data(keys))

        # Each device searches for the captions of its own images: no communication, and an end of its own.
        split = PartitionSpec(DATA_AXIS)
        self._generate = jax.jit(
            jax.shard_map(
                generate, mesh=mesh, in_specs=(PartitionSpec(), split, split), out_specs=split, check_vma=False
            )
        )

    def __call__(
        self, variables: Sequence[Mapping[str, Any]], batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[Caption]:
        """Caption every valid image of this run's batches, on all processes alike.

        Args:
            variables: of each model.
            batches: this process's parts, see `capjax.data.input_pipeline.image_batches`.

        Yields:
            One caption per image, in the order of the global batches.
        """
        for batch in batches:
            visual = batch["features"] if "features" in batch else batch["image"]
            keys = np.asarray(jax.random.key_data(image_keys(self._seed, batch["image_id"])))
            found = self._generate(variables, *shard_batch((visual, keys), self._mesh))
            tokens, log_probs = gather_to_host(found.tokens), gather_to_host(found.log_probs)
            ids, valid = gather_rows(batch["image_id"]), gather_rows(batch["valid"])
            for image_id, rows, scores in zip(ids[valid], tokens[valid], log_probs[valid], strict=True):
                ranked = [
                    (self._vocabulary.decode(row), float(s)) for row, s in zip(rows, scores, strict=True) if s > -np.inf
                ]
                best = ranked[0] if ranked else ("", float("-inf"))
                yield Caption(int(image_id), *best, tuple(ranked[1:]))


class LoadedModel(NamedTuple):
    """A model directory turned into something that captions."""

    captioner: Captioner
    variables: dict[str, Any]
    vocabulary: Vocabulary
    preprocessing: Preprocessing | None
    directory: ModelDirectory


def load_model(path: str) -> LoadedModel:
    """Restore a model directory.

    Raises:
        CapjaxError: if it is none, is damaged, or is of another version.
    """
    directory = load_model_directory(path)
    config = configuration.from_dict(directory.config)
    encoder = EncoderConfig(**directory.encoder) if directory.encoder else None
    captioner = assembly.captioner_from(config, len(directory.vocabulary), encoder)
    preprocessing = encoder and Preprocessing(image_size=encoder.image_size, crop=config.encoder.crop)
    return LoadedModel(captioner, directory.variables, directory.vocabulary, preprocessing, directory)


def load_ensemble(paths: str) -> list[LoadedModel]:
    """Restore the comma-separated model directories of an ensemble.

    Raises:
        CapjaxError: if one cannot be restored, or they do not speak the same words.
    """
    models = [load_model(path) for path in paths.split(",")]
    for path, model in zip(paths.split(","), models, strict=True):
        if model.vocabulary.words != models[0].vocabulary.words:
            raise CapjaxError(f"expected models with one vocabulary for an ensemble, {path} has another")
        if model.preprocessing != models[0].preprocessing:
            raise CapjaxError(f"expected models that see images alike for an ensemble, {path} preprocesses differently")
    return models


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """List the files named, and the images in the folders named, in order.

    Raises:
        CapjaxError: if that is nothing.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found.append(path)
    if not found:
        raise CapjaxError(f"expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(paths)}, found none")
    return found


def search_settings(args: argparse.Namespace, model: LoadedModel) -> DecoderSettings:
    """Take the search a model was configured with, changed by the command line's flags, words turned into ids.

    Raises:
        CapjaxError: if a value is out of range, settings exclude each other, or a word is unknown.
    """
    return settings_from_flags(args, base_settings(model.directory.config))


def base_settings(config: Mapping[str, Any]) -> DecoderSettings:
    """Return the search of a configuration."""
    return DecoderSettings.from_dict(config["search"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax caption`."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files, or folders of them")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory; several, with commas, vote")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--batch_size", type=int, default=16, help="images captioned at once")
    add_decoder_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Caption photos; return 1 if one of them could not be read."""
    files = find_images(args.photos)
    models = load_ensemble(args.model)
    preprocessing = models[0].preprocessing
    if preprocessing is None:
        raise CapjaxError(
            f"the model {args.model} was trained on features made elsewhere and has no encoder to look at photos with; "
            "capjax evaluate scores it on such features"
        )
    vocabulary = models[0].vocabulary
    # One host's devices, and one shape for any number of photos.
    mesh = make_mesh()
    batch_size = -(-min(args.batch_size, len(files)) // mesh.size) * mesh.size
    generator = Generator([m.captioner for m in models], vocabulary, search_settings(args, models[0]), mesh)
    variables = replicate([m.variables for m in models], mesh)
    num_failed = 0
    for start in tqdm(range(0, len(files), batch_size), desc="captioning", unit="batch", disable=None):
        part = files[start : start + batch_size]
        images, ids, errors = _read(part, preprocessing)
        padding = batch_size - len(images)
        if images:
            size = preprocessing.image_size
            batch = {
                "image": np.stack([*images, *padding * [np.zeros((size, size, 3), np.uint8)]]),
                "image_id": np.asarray(ids + padding * [0], np.int64),
                "valid": np.arange(batch_size) < len(images),
            }
            captions = generator(variables, [batch])
        for file, error in zip(part, errors, strict=True):
            _print(file, None if error else next(captions), error, args.json)
        num_failed += len(errors) - errors.count(None)
    return 1 if num_failed else 0


def _read(
    files: Sequence[pathlib.Path], preprocessing: Preprocessing
) -> tuple[list[np.ndarray], list[int], list[str | None]]:
    """Read what can be read, with an id from each file's content; say of every file why not, or None."""
    images, ids, errors = [], [], []
    for file in files:
        error = None
        try:
            content = file.read_bytes()
            images.append(preprocess(decode_image(content), preprocessing))
            ids.append(int.from_bytes(hashlib.sha256(content).digest()[:4]))
        except OSError as failure:
            error = f"cannot read the file: {failure.strerror or failure}"
        except CapjaxError as failure:
            error = str(failure)
        errors.append(error)
    return images, ids, errors


def _print(file: pathlib.Path, caption: Caption | None, error: str | None, as_json: bool) -> None:
    if as_json:
        row: dict[str, Any] = {"file": str(file)}
        if caption is None:
            row["error"] = error
        else:
            row |= {"caption": caption.text, "log_prob": caption.log_prob}
            if caption.alternatives:
                row["alternatives"] = [{"caption": text, "log_prob": score} for text, score in caption.alternatives]
        print(json.dumps(row, ensure_ascii=False), flush=True)
    elif caption is None:
        print(f"{file}: {error}", file=sys.stderr, flush=True)
    else:
        print(f"{file}: {caption.text}", flush=True)
        for text, score in caption.alternatives:
            print(f"  {score:8.2f}  {text}", flush=True)
