"""The job `capjax explain`: how the captions of photos came about, a picture and a page for each photo.

    capjax explain --model=demo/run/model --beam_size=3 demo/pictures

For each word: how likely it was, what else was, and where the model looked; and the beams of the search as a tree.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from capjax.attribution import METHODS
from capjax.attribution.explainer import Explainer, WatchedSearch
from capjax.captioning.loaded_model import LoadedModel, load_model
from capjax.captioning.photos import find_photos, read_photos
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError, printable
from capjax.host.disk import local_path
from capjax.images import ImageError
from capjax.report import Look, write_explanation_page, write_explanation_sheet

_LONGEST_STEM = 200  # bytes
_GENERATOR = b'<meta name="generator" content="capjax'  # in explanation.html


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax explain`."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files, or folders of them")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument(
        "--out", type=local_path, default=pathlib.Path("explained"), help="folder to write (default: explained)"
    )
    parser.add_argument(
        "--heat",
        choices=METHODS,
        help="how to tell where the model looked (default: attention if the model has it, else occlusion)",
    )
    parser.add_argument("--caption", help="explain this caption of the photos, whatever the model would say")
    add_decoder_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Explain the captions of photos; return 1 if one of them could not be read."""
    files = _photos(args.photos)
    names = names_of(files)
    for name in names:
        picture, page = args.out / f"{name}.png", args.out / f"{name}.html"
        for path in (picture, page):
            if path.exists() and not _is_ours(page):
                raise CapjaxError(f"expected another --out than {args.out}, whose file {path} is none that this wrote")
    model = load_model(args.model)
    model.require_preprocessing("capjax evaluate --explain explains its captions of such features")
    settings = settings_from_flags(args, model.search)
    if args.caption is not None:
        _check_caption(args, model)
    explain = PhotoExplainer(model, settings, args.heat, args.out, args.caption)
    num_failed = 0
    for file, name in zip(tqdm(files, "explaining", unit="photo", disable=None), names, strict=True):
        try:
            print(f"{printable(str(file))}: {explain(file, name)}", flush=True)
        except ImageError as error:
            print(f"{printable(str(file))}: {error}", file=sys.stderr, flush=True)
            num_failed += 1
    if num_failed < len(files):
        print(f"wrote {args.out}: a picture and a page of {len(files) - num_failed} photo(s)")
    return 1 if num_failed else 0


def _photos(paths: Sequence[str]) -> list[pathlib.Path]:
    """Find the photos, but for what earlier runs wrote to a folder among them.

    Raises:
        CapjaxError: if there are none.
    """
    named, found = set(map(pathlib.Path, paths)), find_photos(paths)
    written = {file for file in found if file.suffix == ".png" and _is_ours(file.with_suffix(".html"))} - named
    if written:
        print(f"left out what was written before: {len(written)} picture(s)", file=sys.stderr)
    if len(written) == len(found):
        raise CapjaxError(f"expected photos in {', '.join(paths)}, found only what was written before")
    return [file for file in found if file not in written]


def _is_ours(page: pathlib.Path) -> bool:
    """Tell whether this command wrote a page, and with it the picture beside it."""
    if not page.is_file():
        return False
    with open(page, "rb") as file:
        return _GENERATOR in file.read(4096)


def _check_caption(args: argparse.Namespace, model: LoadedModel) -> None:
    """Refuse a given caption without words, or beside options of a search that is not done; tell of unknown words.

    Raises:
        CapjaxError: as said.
    """
    words = model.vocabulary.tokenize(args.caption)
    if not words:
        raise CapjaxError(f"expected --caption to have words, got {args.caption!r}")
    for setting in dataclasses.fields(DecoderSettings):
        if getattr(args, setting.name) is not None:
            raise CapjaxError(f"expected no --{setting.name} beside --caption: nothing is searched for")
    if unknown := [word for word in dict.fromkeys(words) if word not in model.vocabulary.ids]:
        print(f"the model knows no {', '.join(map(repr, unknown))}: read as unknown words", file=sys.stderr)


class PhotoExplainer:
    """Captions photos one by one, or takes the caption that is `told`, and writes how each caption came about."""

    def __init__(
        self, model: LoadedModel, settings: DecoderSettings, heat: str | None, out: pathlib.Path, told: str | None
    ) -> None:
        model = dataclasses.replace(model, variables=jax.device_put(model.variables))
        self._model, self._settings, self._out, self._told = model, settings, out, told
        self._search = WatchedSearch(model, settings) if told is None else None
        self._explainer = Explainer(model, heat, settings.max_length)

    def __call__(self, file: pathlib.Path, name: str) -> str:
        """Write NAME.png and NAME.html; return the caption.

        Raises:
            CapjaxError: if the photo cannot be read, or a file cannot be written.
        """
        read = read_photos([file], self._model.preprocessing)
        if read.errors[0]:
            raise read.errors[0]
        (image,), (image_id,) = read.images, read.ids
        if self._search:
            caption, branches = self._search(image, image_id)
            text, alternatives = caption.text, caption.alternatives
        else:
            caption = text = " ".join(self._model.vocabulary.tokenize(self._told))
            branches, alternatives = [], ()
        explanation = self._explainer(image, caption)
        look = Look(image, explanation, branches, file.name)
        search = self._settings.told() if self._search else "the caption was given"
        heading = f"{file.name}: {search}; lit where the model looked ({explanation.method})"
        log_prob = float(np.sum(np.log([max(word.probability, 1e-38) for word in explanation.words])))
        settings = {
            "model": self._model.path,
            "search": search,
            "log-probability": f"{log_prob:.2f}",
            "where it looked": explanation.method,
        }
        # The page first: by it a run that comes after one that was cut off knows the picture.
        write_explanation_page(self._out / f"{name}.html", look, settings, alternatives)
        write_explanation_sheet(self._out / f"{name}.png", [look], heading)
        return text


def names_of(files: Sequence[pathlib.Path]) -> list[str]:
    """Name what is written after the photos; of photos with one name in several folders, after where they lie too.

    So are those whose names leave no room for another suffix, of 255 bytes that a name may have.
    """
    stems = [file.stem for file in files]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    names = []
    for stem, file in zip(stems, files, strict=True):
        start = stem
        while len(os.fsencode(start)) > _LONGEST_STEM:
            start = start[:-1]
        if stem in twice or start != stem:
            start += f"-{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}"
        names.append(start)
    return names
