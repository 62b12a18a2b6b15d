"""`capjax data prepare | validate | inspect NAME`: builds datasets, checks them, shows them.

capjax data prepare coco/karpathy                            downloads 20 GB
capjax data prepare coco/karpathy --source=DIR               from official zips or folders
capjax data prepare folder --name=mine --images=DIR --captions=FILE
capjax data validate flickr8k --source=DIR                   before preparing; without --source, what was prepared
capjax data inspect coco/karpathy --split=val --out=sheet.png
"""

import argparse
import contextlib
import importlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from capjax import data
from capjax.data.findings import Findings, report_dict, report_json
from capjax.data.listing import Listing, SourceOptions
from capjax.errors import CapjaxError
from capjax.host.disk import check_room, clear_disk_errors, local_path
from capjax.images import CROPS, RESAMPLING, Preprocessing, decode_image, preprocess
from capjax.types import CaptionRecord

if TYPE_CHECKING:
    from capjax.data.caption_builder import CaptionBuilder

# What a dataset takes on disk relative to its image files: records, and conversions that grow.
_SIZE_FACTOR = 1.1
_SIZE_MARGIN = 20_000_000


_SOURCE = (
    "folder of the official files: of coco, annotations and images as they come; of flickr8k and flickr30k, "
    "Flickr8k.token.txt or results_20130124.token, Kaggle's captions.txt or results.csv, or Karpathy's "
    "dataset_NAME.json, and the photos"
)
_CAPTIONS = (
    "a .csv or .tsv file with the columns image, caption and, if you like, split (train, val, test); .jsonl with "
    "file_name, caption or captions, and split; or COCO's .json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `capjax data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = actions.add_parser("prepare", help="build a dataset")
    validate = actions.add_parser("validate", help="check images and captions")
    inspect = actions.add_parser("inspect", help="draw examples with their captions")
    for action in (prepare, validate, inspect):
        add = action.add_argument
        add("dataset", metavar="NAME", help=f"one of {', '.join(data.all_names())}")
        folders = "folder of prepared datasets (default $TFDS_DATA_DIR or ~/tensorflow_datasets)"
        add("--data_dir", type=local_path, help=folders)
        add("--name", help="the NAME of a folder dataset: `folder --name=mine` is `folder/mine`")
    for action in (prepare, validate):
        add, folder = action.add_argument, action.add_argument_group("for the source `folder`").add_argument
        add("--source", type=local_path, help=_SOURCE)
        add("--download_dir", type=local_path, help="folder for downloads (default DATA_DIR/downloads/SOURCE)")
        add("--captions_only", action="store_true", help="take the captions whether or not their images exist")
        add("--num_workers", type=int, default=4, help="threads that decode (default 4)")
        add("--json", action="store_true", help="print the report as JSON")
        folder("--images", type=local_path, action="append", default=[], help="folder or zip of images; repeatable")
        folder("--captions", type=local_path, help=_CAPTIONS)
        folder("--val_share", type=float, help="share of the images for val, where no column says (default 0.1)")
        folder("--test_share", type=float, help="share of the images for test, likewise (default 0)")
    prepare.add_argument("--overwrite", action="store_true", help="build again what is prepared already")
    inspect.add_argument("--split", help="default: the first, train")
    inspect.add_argument(
        "--out", type=_png_path, default=pathlib.Path("sheet.png"), help="PNG to write (default sheet.png)"
    )
    inspect.add_argument("--num", type=int, default=12, help="number of examples (default 12)")
    inspect.add_argument("--image_size", type=int, default=299, help="side after preprocessing (default 299)")
    inspect.add_argument("--crop", choices=CROPS, default="center", help="as encoder.crop (default center)")
    resize = "as encoder.resize (default bilinear)"
    inspect.add_argument("--resize", choices=list(RESAMPLING), default="bilinear", help=resize)


def run(args: argparse.Namespace) -> int:
    """Do what `capjax data` was asked for; returns the exit status."""
    name = _dataset_name(args)
    if getattr(args, "num_workers", 1) < 1:
        raise CapjaxError(f"expected --num_workers of at least 1, got {args.num_workers}")
    match args.action:
        case "prepare":
            return prepare_command(name, args)
        case "validate":
            return validate_command(name, args)
        case _:
            return inspect_command(name, args)


def prepare_command(name: data.DatasetName, args: argparse.Namespace) -> int:
    """Build a dataset, print and store the report."""
    source = data.SOURCES[name.source]
    _check_places(name, args)
    module = importlib.import_module(source.module)
    target = data.target_directory(name, args.data_dir, str(getattr(module, source.builder).VERSION))
    if target in data.dataset_directories(name, args.data_dir) and not args.overwrite:
        message = f"{name} is prepared already in {target}; --overwrite builds it again"
        print(message, file=sys.stderr if args.json else sys.stdout)
        stored = target / "report.json"
        if args.json and stored.exists():
            print(json.dumps(json.loads(stored.read_text(encoding="utf-8")) | {"notes": []}))
        return 0
    if source.rendered:
        found, notes = Findings(), []
        _prepare_rendered(module, source, target)
    else:
        listing = _open_listing(module, name, args)
        found, notes = listing.found, listing.notes
        if name.captions_only:
            _prepare_captions(listing, name, target)
        else:
            _prepare_photos(getattr(module, source.builder), listing, name, target, args.num_workers)
    dataset = data.load(str(name), args.data_dir)
    splits = {split: dataset.records(split) for split in dataset.splits}
    _print_report(_sizes(name, splits, found), found, notes, args.json)
    if not args.json:
        print(f"prepared {name} in {target}")
    return 0


def _check_places(name: data.DatasetName, args: argparse.Namespace) -> None:
    """Refuse files that the source would not look at.

    Raises:
        CapjaxError: naming the option.
    """
    if data.SOURCES[name.source].rendered:
        taken, what = (), "is drawn, and takes no files"
    elif name.source == "folder":
        taken, what = ("images", "captions", "val_share", "test_share"), "takes --images and --captions"
    else:
        taken, what = ("source",), "takes --source"
    for option in ("source", "images", "captions", "val_share", "test_share"):
        if getattr(args, option) not in (None, []) and option not in taken:
            raise CapjaxError(f"expected no --{option}: {name} {what}")


def validate_command(name: data.DatasetName, args: argparse.Namespace) -> int:
    """Check a source, or what was prepared; status 1 if something is left out or in two splits."""
    from capjax.data.validation import passes, validate_dataset, validate_listing

    notes: list[str] = []
    _check_places(name, args)
    if args.source or args.images or args.captions:
        module = importlib.import_module(data.SOURCES[name.source].module)
        listing = _open_listing(module, name, args)
        found, notes = validate_listing(listing, args.num_workers), listing.notes
        splits = listing.splits
    else:
        dataset = data.load(str(name), args.data_dir)
        found = validate_dataset(dataset, args.num_workers)
        splits = {split: dataset.records(split) for split in dataset.splits}
    _print_report(_sizes(name, splits, found), found, notes, args.json)
    return 0 if passes(found) else 1


def _png_path(text: str) -> pathlib.Path:
    path = local_path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected the name of a PNG to write, such as sheet.png, got {text!r}")
    return path


def inspect_command(name: data.DatasetName, args: argparse.Namespace) -> int:
    """Draw examples, evenly spread over a split, after preprocessing."""
    from capjax.report import Example, write_examples

    dataset = data.load(str(name), args.data_dir)
    split = args.split or dataset.splits[0]
    records, images = dataset.records(split), dataset.images(split)
    if args.num < 1:
        raise CapjaxError(f"expected --num of at least 1, got {args.num}")
    if not len(records):
        raise CapjaxError(f"expected images in split {split!r}, it is empty")
    preprocessing = Preprocessing(args.image_size, args.crop, args.resize)
    chosen = np.unique(np.linspace(0, len(records) - 1, args.num).round().astype(int))
    examples = [
        Example(preprocess(decode_image(images[i]), preprocessing), records[i].file_name, records[i].captions)
        for i in chosen
    ]
    size = f"{args.image_size}×{args.image_size}"
    title = f"{name}, {split}: {len(chosen)} of {len(records):,} images, {size}, crop {args.crop}"
    write_examples(args.out, examples, heading=title)
    print(f"wrote {args.out}")
    return 0


def _dataset_name(args: argparse.Namespace) -> data.DatasetName:
    parts = [args.dataset, args.name, data.CAPTIONS_ONLY if getattr(args, "captions_only", False) else None]
    return data.parse_name("/".join(filter(None, parts)))


def _open_listing(module: ModuleType, name: data.DatasetName, args: argparse.Namespace) -> Listing:
    data_dir = args.data_dir or data.default_data_dir()
    options = SourceOptions(
        source=args.source,
        download_dir=args.download_dir or data_dir / "downloads" / name.source,
        captions_only=name.captions_only,
        images=tuple(args.images),
        captions=args.captions,
        val_share=args.val_share,
        test_share=args.test_share,
    )
    if options.source or options.images or options.captions:  # nothing is written
        return module.open_source(name, options)
    with clear_disk_errors(options.download_dir):
        return module.open_source(name, options)


def _prepare_rendered(module: ModuleType, source: data.Source, target: pathlib.Path) -> None:
    from capjax.data.caption_builder import prepare

    prepare(lambda folder: getattr(module, source.builder)(data_dir=folder), target)


def _prepare_photos(
    make_builder: Callable[..., "CaptionBuilder"],
    listing: Listing,
    name: data.DatasetName,
    target: pathlib.Path,
    num_workers: int,
) -> None:
    import tensorflow_datasets as tfds

    from capjax.data.caption_builder import build, workspace
    from capjax.data.ingestion import Journal

    image_bytes = sum(map(listing.total_bytes, listing.splits))
    check_room(target, int(image_bytes * _SIZE_FACTOR) + _SIZE_MARGIN, str(name))
    named_by_user = data.SOURCES[name.source].named_by_user
    config = tfds.core.BuilderConfig(name=name.variant) if named_by_user else name.variant
    with workspace(target) as space, contextlib.closing(Journal(space.path)) as journal:
        if journal.num_resumed:
            print(f"resuming: {journal.num_resumed:,} images were examined before", file=sys.stderr)
        build(
            lambda folder: make_builder(listing, journal, num_workers, data_dir=folder, config=config),
            space,
            lambda directory: _store_report(name, listing, directory),
        )


def _prepare_captions(listing: Listing, name: data.DatasetName, target: pathlib.Path) -> None:
    from capjax.data.caption_builder import workspace, write_captions

    with workspace(target) as space:
        built = space.build / "captions"
        built.mkdir()
        write_captions(built, listing.splits)
        _store_report(name, listing, built)
        space.publish(built)


def _store_report(name: data.DatasetName, listing: Listing, directory: pathlib.Path) -> None:
    dataset = data.CaptionDataset(str(name), directory)
    records = {split: dataset.records(split) for split in dataset.splits}
    (directory / "report.json").write_text(report_json(_sizes(name, records, listing.found)), encoding="utf-8")


def _sizes(name: data.DatasetName, splits: Mapping[str, Sequence[CaptionRecord]], found: Findings) -> dict:
    num_images = {split: len(records) for split, records in splits.items()}
    num_captions = {split: sum(len(record.captions) for record in records) for split, records in splits.items()}
    return report_dict(str(name), num_images, num_captions, found)


def _print_report(report: dict, found: Findings, notes: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({**report, "notes": notes}))
        return
    width = min(shutil.get_terminal_size((160, 24)).columns, 160)
    for split, num_images in report["images"].items():
        print(f"{split:>8}  {num_images:,} images, {report['captions'][split]:,} captions")
    for note in notes:
        print(f"note: {note}")
    for line in found.lines():
        print(line if len(line) <= width else line[: width - 1] + "…")
    if not list(found):
        print("nothing wrong found")
