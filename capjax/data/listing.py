"""A source before its images are opened: which image has which captions in which split, and where its file lies."""

import hashlib
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from capjax.data.caption_files import CaptionedFile
from capjax.data.caption_text import clean_caption
from capjax.data.findings import Findings
from capjax.data.image_files import ImageFile
from capjax.errors import CapjaxError
from capjax.host.disk import inside
from capjax.types import CaptionRecord


@dataclass(frozen=True)
class SourceOptions:
    """Where the user has the files of a source, and how to split them.

    Attributes:
        source: folder of the official files; None downloads them where that is possible.
        download_dir: folder for downloads.
        captions_only: take captions whether or not their images are there.
        images: folders or zips of images, for `folder`.
        captions: caption file, for `folder`.
        val_share: share of the images for validation where no split is given; a tenth by default.
        test_share: likewise for test; none by default.
    """

    source: pathlib.Path | None = None
    download_dir: pathlib.Path = pathlib.Path("downloads")
    captions_only: bool = False
    images: tuple[pathlib.Path, ...] = ()
    captions: pathlib.Path | None = None
    val_share: float | None = None
    test_share: float | None = None


@dataclass
class Listing:
    """What a source offers.

    Attributes:
        splits: records by split, captions repaired, in the order of the source.
        files: image file of each record, by its file name; None when prepared for captions alone.
        found: the trouble so far.
        notes: what the user should know about the splits, in whole sentences.
    """

    splits: dict[str, list[CaptionRecord]]
    files: dict[str, ImageFile] | None
    found: Findings
    notes: list[str]

    def total_bytes(self, split: str) -> int:
        """Sum the sizes of the image files of a split; 0 for captions alone."""
        files = [self.files[record.file_name] for record in self.splits[split]] if self.files else []
        return sum(file.store.size(file.name) for file in files)


def build_listing(
    captioned: Mapping[str, list[CaptionedFile]],
    images: Mapping[str, ImageFile] | None,
    found: Findings,
    notes: list[str],
    left_aside: frozenset[str] = frozenset(),
) -> Listing:
    """Match captions with image files and repair the captions; what does not match is noted and left out.

    Args:
        captioned: files and raw captions by split.
        images: image files by the name that captions use, or None to take the captions alone.
        found: the trouble so far; more is added.
        notes: passed on.
        left_aside: names of images that rightly belong to no split.

    Raises:
        CapjaxError: if nothing is left.
    """
    splits: dict[str, list[CaptionRecord]] = {}
    files: dict[str, ImageFile] = {}
    ids: set[int] = set()
    names: set[str] = set()
    stored: set[str] = set()
    for split, entries in captioned.items():
        records = []
        for entry in entries:
            # A name that is not UTF-8 could not be stored.
            file_name = entry.file_name.encode("utf-8", "replace").decode("utf-8")
            if entry.file_name in names or file_name in stored:
                found.add("repeated name", entry.file_name, split)
                continue
            names.add(entry.file_name)
            if inside(pathlib.Path(), entry.file_name) is None:
                found.add("path outside", entry.file_name)
                continue
            if images is not None and entry.file_name not in images:
                found.add("caption without image", entry.file_name)
                continue
            if not entry.captions:
                found.add("image without captions", entry.file_name)
                continue
            captions = [clean_caption(text, entry.file_name, found) for text in entry.captions]
            captions = tuple(caption for caption in captions if caption is not None)
            if not captions:
                continue
            image_id = entry.image_id
            if image_id in ids:
                found.add("shared id", entry.file_name, f"id {image_id}")
            if image_id is None or image_id in ids:
                image_id = stable_id(entry.file_name)
            ids.add(image_id)
            stored.add(file_name)
            records.append(CaptionRecord(image_id, file_name, captions))
            if images is not None:
                files[file_name] = images[entry.file_name]
        if records:
            splits[split] = records
    for name in sorted(set(images or ()) - names - left_aside):
        found.add("image without captions", name)
    if not splits:
        raise CapjaxError(
            "expected images with captions, found none that belong together: "
            f"{found.count('caption without image'):,} captioned names without an image file, "
            f"{found.count('image without captions'):,} image files without captions, "
            f"{found.count('path outside'):,} names that lead out of the folder, "
            f"{found.count('empty caption'):,} empty captions; check the paths"
        )
    return Listing(splits, None if images is None else files, found, notes)


def stable_id(name: str) -> int:
    """Derive an image id from a file name, the same on every machine and below 2^48."""
    return int.from_bytes(_digest(name)[:6], "big")


def hash_share(name: str) -> float:
    """Map a file name to a fixed number in [0, 1), by which splits are drawn."""
    return int.from_bytes(_digest("split:" + name)[:6], "big") / 2**48


def _digest(text: str) -> bytes:
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of characters, which JSON can hold and no name of a file
        data = text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).digest()
