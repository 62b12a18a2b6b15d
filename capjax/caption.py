"""The job `capjax caption`: photos in, sentences out."""

import argparse
import json
import pathlib
import sys
from typing import Any

from tqdm import tqdm

from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import load_ensemble
from capjax.captioning.photos import PhotoCaptioner, find_photos
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.errors import CapjaxError, printable
from capjax.host.disk import finite_or_none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax caption`."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files, or folders of them")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory; several, with commas, vote")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--batch_size", type=int, default=16, help="images captioned at once (default: 16)")
    add_decoder_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Caption photos; return 1 if one of them could not be read."""
    files = find_photos(args.photos)
    models = load_ensemble(args.model)
    captioner = PhotoCaptioner(models, args.batch_size)
    found = captioner(files, settings_from_flags(args, models[0].search))
    num_failed = 0
    for file, caption in zip(files, tqdm(found, "captioning", len(files), unit="photo", disable=None), strict=True):
        _print(file, caption, args.json)
        num_failed += isinstance(caption, CapjaxError)
    return 1 if num_failed else 0


def _print(file: pathlib.Path, caption: Caption | CapjaxError, as_json: bool) -> None:
    if as_json:
        row: dict[str, Any] = {"file": str(file)}
        if isinstance(caption, CapjaxError):
            row["error"] = str(caption)
        else:
            # A search that came to nothing has no finite log-probability.
            row |= {"caption": caption.text, "log_prob": finite_or_none(caption.log_prob)}
            if caption.alternatives:
                row["alternatives"] = [{"caption": text, "log_prob": score} for text, score in caption.alternatives]
        print(json.dumps(row), flush=True)
    elif isinstance(caption, CapjaxError):
        print(f"{printable(str(file))}: {caption}", file=sys.stderr, flush=True)
    else:
        print(f"{printable(str(file))}: {caption.text}", flush=True)
        for text, score in caption.alternatives:
            print(f"  {score:8.2f}  {text}", flush=True)
