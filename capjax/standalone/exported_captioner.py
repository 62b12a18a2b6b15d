"""Captions photos with what `capjax export` wrote, without capjax.

    python captioner.pyz photo.jpg folder/*.jpg
    python captioner.pyz --json photo.jpg

From a program, with the file on the path:

    import sys
    sys.path.insert(0, "captioner.pyz")
    from exported_captioner import ExportedCaptioner

    captioner = ExportedCaptioner("captioner.pyz")
    (captions,) = captioner([open("photo.jpg", "rb").read()])
    print(captions[0].text, captions[0].log_prob)

The file is a zip: `description.json`, `program.bin` (StableHLO serialised by `jax.export`: pixels in, ids of words out,
for CPUs, CUDA and TPUs), `weights/`, this program, and what it needs that is not in every environment.
"""

import argparse
import io
import json
import math
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

if not __package__:  # run from an exported file, which brings along what jax and the reader of images may lack
    sys.path.append(str(pathlib.Path(__file__).parent / "stand_in"))
from capjax.errors import CapjaxError, printable
from capjax.images import Preprocessing, decode_image, photo_id, preprocess, read_image_file

FORMAT_VERSION = 1


class ExportedCaption(NamedTuple):
    """A sentence and its log-probability, summed over its words and END."""

    text: str
    log_prob: float


class ExportedCaptioner:
    """A captioner and its search, as they were when they were exported."""

    def __init__(self, path: str, batch_size: int = 16) -> None:
        """Read the file and move the weights to the device.

        Args:
            path: of the exported file.
            batch_size: photos captioned at once, at most.

        Raises:
            CapjaxError: if it is none, or this JAX cannot run it.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                description = json.loads(archive.read("description.json"))
                if description["format_version"] != FORMAT_VERSION:
                    raise CapjaxError(
                        f"expected format {FORMAT_VERSION} in {path}, got {description['format_version']}; run the "
                        "file itself: python FILE"
                    )
                _check_version(description, path)
                program = export.deserialize(bytearray(archive.read("program.bin")))
                weights = [
                    np.load(io.BytesIO(archive.read(f"weights/{i}.npy")), allow_pickle=False)
                    for i in range(description["num_weights"])
                ]
        except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise CapjaxError(f"expected a file that `capjax export` wrote at {path}, got {error}") from None
        platform = jax.default_backend()
        if {"gpu": "cuda"}.get(platform, platform) not in program.platforms:
            raise CapjaxError(f"expected one of the devices {', '.join(program.platforms)}, got {platform}")
        self._preprocessing = Preprocessing(**description["preprocessing"])
        self._words, self._num_special, self._end = description["words"], description["num_special"], description["end"]
        self._most, self._size = batch_size, 1
        self._weights = jax.device_put(weights)
        self._run = jax.jit(program.call)

    def __call__(self, photos: Sequence[bytes]) -> list[list[ExportedCaption] | CapjaxError]:
        """Caption encoded photos.

        Returns:
            For each its captions, the best first, or why it could not be read.
        """
        found: list[Any] = []
        # Fewer photos are filled up to the shape that there is a program for.
        self._size = max(self._size, min(self._most, len(photos)))
        for start in range(0, len(photos), self._size):
            found += self._batch(photos[start : start + self._size])
        return found

    def _batch(self, photos: Sequence[bytes]) -> list[Any]:
        side = self._preprocessing.image_size
        pixels, ids = np.zeros((self._size, side, side, 3), np.uint8), np.zeros(self._size, np.uint32)
        errors: dict[int, CapjaxError] = {}
        for i, photo in enumerate(photos):
            try:
                pixels[i] = preprocess(decode_image(photo), self._preprocessing)
                ids[i] = photo_id(photo)
            except CapjaxError as error:
                errors[i] = error
        tokens, log_probs = map(np.asarray, self._run(self._weights, pixels, ids))
        return [errors.get(i) or self._captions(tokens[i], log_probs[i]) for i in range(len(photos))]

    def _captions(self, tokens: np.ndarray, log_probs: np.ndarray) -> list[ExportedCaption]:
        ranked = [
            ExportedCaption(self._sentence(row), float(score))
            for row, score in zip(tokens, log_probs, strict=True)
            if score > -np.inf
        ]
        return ranked or [ExportedCaption("", float("-inf"))]

    def _sentence(self, tokens: np.ndarray) -> str:
        words = []
        for token in tokens:
            if token == self._end:
                break
            if token >= self._num_special and not self._words[token].startswith("<unused"):
                words.append(self._words[token])
        return " ".join(words)


def _check_version(description: dict[str, Any], path: str) -> None:
    version = description["calling_convention_version"]
    oldest = export.minimum_supported_calling_convention_version
    newest = export.maximum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise CapjaxError(
            f"{path} was exported with jax {description['jax']} (calling convention {version}), jax {jax.__version__} "
            f"runs {oldest} to {newest}; pip install 'jax=={description['jax']}', or export it again"
        )


def main(path: str) -> int:
    """Caption the photos that the command line names; return 1 if one could not be read."""
    parser = argparse.ArgumentParser(prog=f"python {path}", description="Caption photos.")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--batch_size", type=int, default=16, help="photos captioned at once (default: 16)")
    args = parser.parse_args()
    try:
        if args.batch_size < 1:
            raise CapjaxError(f"expected --batch_size of at least 1, got {args.batch_size}")
        captioner = ExportedCaptioner(path, args.batch_size)
    except CapjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status = 0
    for start in range(0, len(args.photos), args.batch_size):
        names = args.photos[start : start + args.batch_size]
        contents: list[bytes | CapjaxError] = [_content(name) for name in names]
        captions = iter(captioner([content for content in contents if isinstance(content, bytes)]))
        for name, content in zip(names, contents, strict=True):
            found = next(captions) if isinstance(content, bytes) else content
            status |= isinstance(found, CapjaxError)
            _print(name, found, args.json)
    return int(status)


def _content(name: str) -> bytes | CapjaxError:
    try:
        return read_image_file(pathlib.Path(name))
    except CapjaxError as error:
        return error


def _print(name: str, found: list[ExportedCaption] | CapjaxError, as_json: bool) -> None:
    if as_json:
        row: dict[str, Any] = {"file": name}
        if isinstance(found, CapjaxError):
            row["error"] = str(found)
        else:
            best, *others = found
            row |= {"caption": best.text, "log_prob": best.log_prob if math.isfinite(best.log_prob) else None}
            if others:
                row["alternatives"] = [{"caption": text, "log_prob": score} for text, score in others]
        print(json.dumps(row), flush=True)
    elif isinstance(found, CapjaxError):
        print(f"{printable(name)}: {found}", file=sys.stderr, flush=True)
    else:
        print(f"{printable(name)}: {found[0].text}", flush=True)
        for text, score in found[1:]:
            print(f"  {score:8.2f}  {text}", flush=True)
