"""Anybody's images with captions in one file: a table (CSV, TSV), JSON Lines, or COCO JSON.

    image,caption,split              {"file_name": "a.jpg", "captions": ["…", "…"]}
    a.jpg,A dog runs.,train          {"file_name": "sub/b.png", "caption": "…", "split": "val"}

Names may be paths below the image folder or from further up, bare file names, or names without suffix, as long as they
are unambiguous. Without a `split` column the split of an image depends on its name alone, so adding images moves no
other, but for the one that stands in where a small dataset would have no validation.
"""

import dataclasses
import unicodedata
from collections.abc import Collection, Iterable

import tensorflow_datasets as tfds

from capjax.data import DatasetName
from capjax.data.caption_files import CaptionedFile, group_by_name, read_captions, split_named
from capjax.data.findings import Findings
from capjax.data.image_files import find_images, one_of_each, open_images
from capjax.data.ingestion import PhotoBuilder
from capjax.data.listing import Listing, SourceOptions, build_listing, hash_share
from capjax.errors import CapjaxError

_MOST_PARTS = 32  # of a path that matter


class Folder(PhotoBuilder):
    """The user's own dataset; its name is the configuration."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Images and captions of the user."


def open_source(name: DatasetName, options: SourceOptions) -> Listing:
    """List the user's images and captions.

    Args:
        name: that the user gave the dataset; the listing does not depend on it.
        options: `images`, `captions`, `captions_only` and the shares are used.

    Raises:
        CapjaxError: if an option is missing or wrong, or nothing belongs together.
    """
    del name
    if options.captions is None or not (options.images or options.captions_only):
        raise CapjaxError("a folder dataset needs --images=DIR and --captions=FILE (.csv, .tsv, .jsonl or COCO .json)")
    shares = (0.1 if options.val_share is None else options.val_share, options.test_share or 0.0)
    if not (min(shares) >= 0 and sum(shares) < 1):  # so written, it refuses nan
        raise CapjaxError(f"expected val_share and test_share that leave something to train on, got {shares}")
    found = Findings()
    files = read_captions(options.captions, found)
    images = None
    if not options.captions_only:
        found_images = find_images(map(open_images, options.images))
        files = _resolve_names(files, found_images, found)
        images = one_of_each(found_images, {file.file_name for file in files})
    notes: list[str] = []
    if any(file.split for file in files):
        splits = _given_splits(files, notes)
        if (options.val_share, options.test_share) != (None, None):
            notes.append("the captions say which split an image belongs to: --val_share and --test_share had no use.")
    else:
        splits = draw_splits([file for file in files if images is None or file.file_name in images], *shares)
        splits["train"] += [file for file in files if images is not None and file.file_name not in images]
        notes.append("no split column was found: the splits are drawn by file name.")
    return build_listing(splits, images, found, notes)


def draw_splits(files: list[CaptionedFile], val_share: float, test_share: float) -> dict[str, list[CaptionedFile]]:
    """Deal files to splits by a hash of their names; a small dataset still gets one image for each share above 0."""
    splits: dict[str, list[CaptionedFile]] = {"train": [], "val": [], "test": []}
    for file in files:
        at = hash_share(file.file_name)
        splits["val" if at < val_share else "test" if at < val_share + test_share else "train"].append(file)
    for split, share in (("val", val_share), ("test", test_share)):
        if share and not splits[split] and len(splits["train"]) > 1:
            moved = min(splits["train"], key=lambda file: hash_share(file.file_name))
            splits["train"].remove(moved)
            splits[split].append(moved)
    return splits


def _given_splits(files: list[CaptionedFile], notes: list[str]) -> dict[str, list[CaptionedFile]]:
    splits: dict[str, list[CaptionedFile]] = {"train": [], "val": [], "test": []}
    for file in files:
        split = split_named(file.split or "train")
        if split is None:
            raise CapjaxError(f"expected train, val or test as split of {file.file_name}, got {file.split!r}")
        splits[split].append(file)
    if without := sum(not file.split for file in files):
        notes.append(f"{without:,} images have no split and are used for training.")
    return splits


def _resolve_names(files: Iterable[CaptionedFile], images: Collection[str], found: Findings) -> list[CaptionedFile]:
    """Replace the names that captions use by paths of image files, where that is unambiguous."""
    ending_in: dict[str, str] = {}  # "" where several paths do
    whole: dict[str, str] = {}
    for name in images:
        ends = _ends(name)
        for index, paths in ((whole, ends[:1]), (ending_in, ends)):
            for alias in {*paths, *(path.rpartition(".")[0] for path in paths)}:
                index[alias] = "" if alias in index else name
    resolved = []
    for file in files:
        name = file.file_name.replace("\\", "/")
        if name not in images:
            ends = _ends(name)
            # Paths that end as the name does, or the longest as which it ends.
            tried = ((ending_in, ends[0]), *((whole, end) for end in ends))
            name = next((index[end] for index, end in tried if end in index), "") or name.removeprefix("./")
        resolved.append(dataclasses.replace(file, file_name=name))
    return group_by_name(resolved, found)


def _ends(path: str) -> list[str]:
    """Return a path, and what is left of it without its first folder, without its first two, and so on.

    Archives made on a Mac spell accents in two characters; here they are one.
    """
    parts = unicodedata.normalize("NFC", path).split("/")
    parts = [part for part in parts if part not in ("", ".")][-_MOST_PARTS:] or [path]
    return ["/".join(parts[i:]) for i in range(len(parts))]
