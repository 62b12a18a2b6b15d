"""The job `capjax caption`: photos in, sentences out."""

import argparse
import json
import pathlib
import sys
from typing import Any

from tqdm import tqdm

from capjax.captioning import Caption, Generator, find_photos, load_ensemble, photo_batch, read_photos
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.errors import CapjaxError, printable
from capjax.sharding import make_mesh, replicate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax caption`."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files, or folders of them")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory; several, with commas, vote")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--batch_size", type=int, default=16, help="images captioned at once")
    add_decoder_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Caption photos; return 1 if one of them could not be read."""
    if args.batch_size < 1:
        raise CapjaxError(f"expected --batch_size of at least 1, got {args.batch_size}")
    files = find_photos(args.photos)
    models = load_ensemble(args.model)
    preprocessing = models[0].preprocessing
    if preprocessing is None:
        raise CapjaxError(
            f"the model {args.model} was trained on features made elsewhere and has no encoder to look at photos with; "
            "capjax evaluate scores it on such features"
        )
    settings = settings_from_flags(args, models[0].search)
    # One host's devices, and one shape for any number of photos.
    mesh = make_mesh()
    batch_size = -(-min(args.batch_size, len(files)) // mesh.size) * mesh.size
    generator = Generator([m.captioner for m in models], models[0].vocabulary, mesh)
    variables = replicate([m.variables for m in models], mesh)
    num_failed = 0
    for start in tqdm(range(0, len(files), batch_size), desc="captioning", unit="batch", disable=None):
        part = files[start : start + batch_size]
        photos = read_photos(part, preprocessing)
        batches = [photo_batch(photos, batch_size, preprocessing)] if photos.images else []
        captions = generator(variables, batches, settings)
        for file, error in zip(part, photos.errors, strict=True):
            _print(file, None if error else next(captions), error, args.json)
            num_failed += error is not None
    return 1 if num_failed else 0


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
        print(f"{printable(str(file))}: {error}", file=sys.stderr, flush=True)
    else:
        print(f"{printable(str(file))}: {caption.text}", flush=True)
        for text, score in caption.alternatives:
            print(f"  {score:8.2f}  {text}", flush=True)
