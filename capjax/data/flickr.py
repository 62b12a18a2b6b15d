"""Flickr8k (Hodosh et al. 2013) and Flickr30k (Young et al. 2014), in every layout in which people have them.

Captions, the first that is found in the folder or up to two levels below:

| file                                                      | layout                                       |
| --------------------------------------------------------- | -------------------------------------------- |
| `captions_train.json`, `captions_dev.json`, …             | COCO, one file per split                     |
| `dataset_flickr8k.json`, `dataset_flickr30k.json`         | Karpathy's, splits inside                    |
| `Flickr8k.token.txt`, `results_20130124.token`            | official: `photo.jpg#0<tab>caption`          |
| `captions.txt`, `results.csv`                             | Kaggle: a table, separated by `,` or `|`     |

Files that are named after the other dataset are passed over. For the last two layouts splits come from lists of file
names (`Flickr_8k.trainImages.txt`, `train.txt`, …); without such lists they are drawn by a hash of the file name, and
that is said. Photos may lie in any folder below, or in zips.
"""

import json
import pathlib
import re

import tensorflow_datasets as tfds

from capjax.data import DatasetName
from capjax.data.caption_files import (
    CaptionedFile,
    as_id,
    parse_coco_json,
    parse_table,
    parse_tokens,
    read_bytes,
)
from capjax.data.caption_text import decode_text, text_lines
from capjax.data.findings import Findings
from capjax.data.image_files import ImageFolder, ImageStore, ImageZip, base_name, find_images, one_of_each
from capjax.data.ingestion import PhotoBuilder
from capjax.data.listing import Listing, SourceOptions, build_listing, hash_share
from capjax.errors import CapjaxError

_TOKENS = {"flickr8k": ("Flickr8k.token.txt",), "flickr30k": ("Flickr30k.token.txt", "results_20130124.token")}
_TABLES = {  # the first that is there: both have come as either
    "flickr8k": ("captions.txt", "captions.csv", "results.csv"),
    "flickr30k": ("results.csv", "captions.txt", "captions.csv"),
}
_NUM_IMAGES = {"flickr8k": 8_000, "flickr30k": 31_014}  # of the official splits, and of Karpathy's
SPLIT_NAMES = {"train": ("train",), "val": ("dev", "val"), "test": ("test",)}
# Of about 8,000 photos of Flickr8k, the official validation and test splits have 1,000 each.
DRAWN_SHARE = 1 / 8


class Flickr8k(PhotoBuilder):
    """Flickr8k."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Photos of people and animals in action, five captions each."
    HOMEPAGE = "https://hockenmaier.cs.illinois.edu/8k-pictures.html"
    CITATION = "Hodosh, Young and Hockenmaier, Framing Image Description as a Ranking Task, JAIR 47, 2013"


class Flickr30k(PhotoBuilder):
    """Flickr30k."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Photos of everyday activities and events, five captions each."
    HOMEPAGE = "https://shannon.cs.illinois.edu/DenotationGraph/"
    CITATION = "Young, Lai, Hodosh and Hockenmaier, From Image Descriptions to Visual Denotations, TACL 2, 2014"


def open_source(name: DatasetName, options: SourceOptions) -> Listing:
    """List the photos and captions found in a folder.

    Args:
        name: flickr8k or flickr30k.
        options: `source` and `captions_only` are used.

    Raises:
        CapjaxError: if there is no folder, no caption file in it, or nothing that belongs together.
    """
    folder = options.source
    if folder is None:
        raise CapjaxError("the Flickr datasets must be requested from their authors; name your copy with --source=DIR")
    if not folder.is_dir():
        raise CapjaxError(f"expected a folder at --source={folder}, there is none")
    found, notes = Findings(), []
    splits = _read_split_files(name.source, folder, found)
    left_aside: frozenset[str] = frozenset()
    if not splits:
        files = _read_all_captions(name.source, folder, found)
        lists = _read_split_lists(name.source, folder, found)
        if lists:
            splits = {split: [] for split in SPLIT_NAMES}
            for file in files:
                if split := lists.get(_stem(file.file_name)):
                    splits[split].append(file)
            left_aside = frozenset(file.file_name for file in files if _stem(file.file_name) not in lists)
            if left_aside:
                notes.append(f"{len(left_aside):,} captioned photos are in none of the split lists and are left aside.")
        else:
            splits = _draw_splits(files)
            notes.append("no split lists were found: the splits are drawn by file name and are not the official ones.")
    num_images = sum(map(len, splits.values()))
    if num_images < (least := _NUM_IMAGES[name.source]):
        notes.append(f"{name.source} is incomplete: captions of {num_images:,} photos of {least:,}.")
    for file in (file for files in splits.values() for file in files):
        file.image_id = photo_id(file.file_name) if file.image_id is None else file.image_id
    images = None
    if not options.captions_only:
        stores: list[ImageStore] = [ImageFolder(folder), *map(ImageZip, sorted(folder.glob("*.zip")))]
        captioned = {file.file_name for files in splits.values() for file in files}
        images = one_of_each(find_images(stores, base_name), captioned)
    return build_listing(splits, images, found, notes, left_aside)


def photo_id(file_name: str) -> int | None:
    """Take Flickr's own number of a photo from its file name: 2513260012_03d33305cf.jpg, 1000092795.jpg."""
    match = re.match(r"(\d+)(?:_[0-9a-f]+)?\.", file_name)
    return as_id(match[1]) if match else None


def _find(folder: pathlib.Path, pattern: str) -> pathlib.Path | None:
    for depth in ("", "*/", "*/*/"):
        if paths := sorted(folder.glob(depth + pattern)):
            return paths[0]
    return None


def _read_split_files(dataset: str, folder: pathlib.Path, found: Findings) -> dict[str, list[CaptionedFile]]:
    splits = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            if path := _find(folder, f"captions_{name}.json"):
                splits[split] = parse_coco_json(read_bytes(path), path.name, found)
    if not splits and (path := _find(folder, f"dataset_{dataset}.json")):
        splits = _parse_karpathy(path, found)
    return splits


def _parse_karpathy(path: pathlib.Path, found: Findings) -> dict[str, list[CaptionedFile]]:
    splits: dict[str, list[CaptionedFile]] = {split: [] for split in SPLIT_NAMES}
    try:
        for image in json.loads(decode_text(read_bytes(path), path.name, found))["images"]:
            captions = [sentence["raw"] for sentence in image["sentences"]]
            if not all(isinstance(text, str) for text in (image["filename"], *captions)):
                raise TypeError(f"no text: {image['filename']!r} with {captions!r}"[:200])
            splits[image["split"]].append(CaptionedFile(image["filename"], captions))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CapjaxError(
            f"expected Karpathy's layout (images with filename, split, sentences) in {path}, got {error!r}"
        ) from None
    return splits


def _read_all_captions(dataset: str, folder: pathlib.Path, found: Findings) -> list[CaptionedFile]:
    for file_name in _TOKENS[dataset]:
        if path := _find(folder, file_name):
            return parse_tokens(read_bytes(path), path.name, found)
    for file_name in _TABLES[dataset]:
        if path := _find(folder, file_name):
            return parse_table(read_bytes(path), path.name, found)
    raise CapjaxError(
        f"expected captions of {dataset} in {folder} ({', '.join((*_TOKENS[dataset], *_TABLES[dataset]))}, "
        f"dataset_{dataset}.json or captions_train.json), found no such file"
    )


def _read_split_lists(dataset: str, folder: pathlib.Path, found: Findings) -> dict[str, str]:
    """Map file name stems to splits; empty if there are no lists."""
    split_of, official = {}, dataset.replace("flickr", "[Ff]lickr_")
    for split, names in SPLIT_NAMES.items():
        for name in names:
            path = _find(folder, f"{official}.{name}Images.txt") or _find(folder, f"{name}.txt")
            if path:
                for line in text_lines(decode_text(read_bytes(path), path.name, found)):
                    split_of[_stem(line.strip(" \t"))] = split
    return split_of


def _draw_splits(files: list[CaptionedFile]) -> dict[str, list[CaptionedFile]]:
    splits: dict[str, list[CaptionedFile]] = {split: [] for split in SPLIT_NAMES}
    for file in files:
        share = hash_share(file.file_name)
        splits["val" if share < DRAWN_SHARE else "test" if share < 2 * DRAWN_SHARE else "train"].append(file)
    return splits


def _stem(file_name: str) -> str:
    return file_name.removesuffix(".jpg")
