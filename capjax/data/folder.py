"""Anybody's images with captions in one file: a table (CSV, TSV), JSON Lines, or COCO JSON.

    image,caption,split              {"file_name": "a.jpg", "captions": ["…", "…"]}
    a.jpg,A dog runs.,train          {"file_name": "sub/b.png", "caption": "…", "split": "val"}

Names may be paths below the image folder, bare file names, or names without suffix, as long as they are unambiguous.
Without a `split` column the split of an image depends on its name alone, so adding images moves no other.
"""

import unicodedata
from collections.abc import Iterable

import tensorflow_datasets as tfds

from capjax.data.caption_files import CaptionedFile, read_captions
from capjax.data.findings import Findings
from capjax.data.image_files import ImageFile, open_images
from capjax.data.ingestion import PhotoBuilder
from capjax.data.listing import Listing, SourceOptions, build_listing, hash_share
from capjax.errors import CapjaxError

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class Folder(PhotoBuilder):
    """The user's own dataset; its name is the configuration."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Images and captions of the user."


def open_source(variant: str | None, options: SourceOptions) -> Listing:
    """List the user's images and captions.

    Args:
        variant: the name that the user gave the dataset; the listing does not depend on it.
        options: `images`, `captions`, `captions_only` and the shares are used.

    Raises:
        CapjaxError: if an option is missing or wrong, or nothing belongs together.
    """
    del variant
    if options.captions is None or not (options.images or options.captions_only):
        raise CapjaxError("a folder dataset needs --images=DIR and --captions=FILE (.csv, .tsv, .jsonl or COCO .json)")
    shares = (options.val_share, options.test_share)
    if not (min(shares) >= 0 and sum(shares) < 1):  # so written, it refuses nan
        raise CapjaxError(f"expected val_share and test_share that leave something to train on, got {shares}")
    found = Findings()
    files = read_captions(options.captions, found)
    images = None
    if not options.captions_only:
        images = {name: ImageFile(store, name) for store in map(open_images, options.images) for name in store.names()}
        files = _resolve_names(files, images)
    notes: list[str] = []
    if any(file.split for file in files):
        splits = _given_splits(files, notes)
    else:
        splits = draw_splits(files, *shares)
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
        split = SPLIT_ALIASES.get((file.split or "train").strip().lower())
        if split is None:
            raise CapjaxError(f"expected train, val or test as split of {file.file_name}, got {file.split!r}")
        splits[split].append(file)
    if without := sum(not file.split for file in files):
        notes.append(f"{without:,} images have no split and are used for training.")
    return splits


def _resolve_names(files: Iterable[CaptionedFile], images: dict[str, ImageFile]) -> list[CaptionedFile]:
    """Replace the names that captions use by paths of image files, where that is unambiguous."""
    by_alias: dict[str, set[str]] = {}
    for name in images:
        base = unicodedata.normalize("NFC", name.rsplit("/", 1)[-1])
        for alias in (base, base.rsplit(".", 1)[0]):
            by_alias.setdefault(alias, set()).add(name)
    resolved: dict[str, CaptionedFile] = {}
    for file in files:
        name = file.file_name.replace("\\", "/").removeprefix("./")
        if name not in images:
            # Archives made on a Mac spell accents in two characters.
            candidates = by_alias.get(unicodedata.normalize("NFC", name.rsplit("/", 1)[-1]), set())
            name = next(iter(candidates)) if len(candidates) == 1 else name
        known = resolved.setdefault(name, file)
        if known is file:
            file.file_name = name
        else:
            known.captions.extend(file.captions)
    return list(resolved.values())
