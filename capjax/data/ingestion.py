"""From image files to encoded RGB: examine in parallel, pass on what is fine, convert what can be, leave out the rest.

An upright RGB image in JPEG or PNG goes into the dataset byte for byte. Verdicts are journalled as they fall, so that a
preparation that was killed reads, but does not examine again, what it had seen.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from capjax.data.caption_builder import CaptionBuilder, SplitExamples
from capjax.data.findings import KINDS, Findings
from capjax.data.image_files import ImageFile
from capjax.data.listing import Listing
from capjax.host.disk import write_atomically
from capjax.images import ImageError, image_errors, load_rgb, open_image
from capjax.types import CaptionRecord

_PASSED_ON = ("JPEG", "MPO", "PNG")
_LOSSY = ("JPEG", "MPO", "WEBP", "HEIF", "AVIF", "JPEG2000")
_MAX_JPEG_SIDE = 65_500
_EXIF_ORIENTATION = 0x0112
_MODES = {"RGB": None, "RGBA": None, "RGBX": None, "CMYK": "cmyk", "P": "palette", "PA": "palette"}
_GREYSCALE_MODES = ("1", "L", "LA", "La")

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was seen in one image file.

    Attributes:
        troubles: pairs of a kind of `findings.KINDS` and a detail; empty for an image that is fine.
        sha256: of the file, in hexadecimal; empty if it could not be read.
    """

    troubles: tuple[tuple[str, str], ...]
    sha256: str

    @property
    def usable(self) -> bool:
        """Whether the image can be part of a dataset."""
        return all(KINDS[kind].action != "left out" for kind, _ in self.troubles)


def examine(data: bytes, convert: bool = True) -> tuple[Verdict, bytes | None]:
    """Decode an image file in full and say what is out of the ordinary.

    Args:
        data: the file.
        convert: also encode the image as RGB where it is not.

    Returns:
        The verdict, and the converted image if it needed that and `convert` is true.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = open_image(data)
        image_format = image.format
        with image_errors():
            troubles = _peculiarities(image)
        rgb = load_rgb(image)
    except ImageError as error:
        return verdict_of(error, sha256), None
    lossless = image_format not in _LOSSY or max(rgb.size) > _MAX_JPEG_SIDE
    encoded = _encode(rgb, lossless) if troubles and convert else None
    return Verdict(tuple(troubles), sha256), encoded


def verdict_of(error: ImageError, sha256: str = "") -> Verdict:
    """Give the verdict on an image that cannot be used."""
    # The kind says what was expected.
    return Verdict(((error.kind, str(error).rpartition(", got ")[2]),), sha256)


def _peculiarities(image: Image.Image) -> list[tuple[str, str]]:
    troubles = []
    size = f"{image.width}×{image.height}"
    if image.format not in _PASSED_ON:
        troubles.append(("other format", str(image.format)))
    if image.mode in _GREYSCALE_MODES or image.mode.startswith("I"):
        troubles.append(("greyscale", size))
    elif kind := _MODES.get(image.mode, "other colours"):
        troubles.append((kind, size))
    if image.has_transparency_data:
        troubles.append(("transparent", size))
    if image.format != "MPO" and getattr(image, "is_animated", False):
        troubles.append(("animated", size))
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        troubles.append(("rotated", f"orientation {orientation}"))
    return troubles


def _encode(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    if lossless:
        # Without the colour profile of the source, which may be one of greys or inks.
        image.save(buffer, "PNG", icc_profile=None)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


class Journal:
    """Verdicts on disk, one line each, in the folder of a preparation; converted images beside them."""

    def __init__(self, folder: pathlib.Path):
        """Read the verdicts of an earlier run in `folder`; a half-written last line is dropped."""
        self._folder = folder
        self._lock = threading.Lock()
        self._verdicts: dict[str, Verdict] = {}
        (folder / "converted").mkdir(parents=True, exist_ok=True)
        path = folder / "journal.jsonl"
        whole, _, torn = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        for line in whole.splitlines():
            # A line that cannot be read, after a crash of the machine, only means that its image is examined again.
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                key, troubles, sha256 = json.loads(line)
                verdict = Verdict(tuple((kind, detail) for kind, detail in troubles), sha256)
                if all(kind in KINDS for kind, _ in verdict.troubles):
                    self._verdicts[key] = verdict
        self.num_resumed = len(self._verdicts)
        if torn:
            os.truncate(path, path.stat().st_size - len(torn))
        self._file = open(path, "a", encoding="utf-8")

    def image(self, name: str, file: ImageFile) -> tuple[Verdict, bytes | None]:
        """Give the verdict on a file, and the image to store, or None if it is unusable."""
        key = f"{name} {file.store.fingerprint(file.name)}"
        known = self._verdicts.get(key)
        if known and not known.usable:
            return known, None
        converted = self._folder / "converted" / hashlib.sha256(key.encode()).hexdigest()[:32]
        if known and known.troubles and converted.exists():
            return known, converted.read_bytes()
        try:
            data = file.read()
        except ImageError as error:
            return verdict_of(error), None
        if known and not known.troubles:
            return known, data
        verdict, encoded = examine(data)
        if encoded:
            write_atomically(converted, encoded)
        line = json.dumps([key, verdict.troubles, verdict.sha256], ensure_ascii=False) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
        return verdict, (encoded or data) if verdict.usable else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PhotoBuilder(CaptionBuilder):
    """Base of the sources that have image files; examines them on the way into the dataset."""

    def __init__(self, listing: Listing, journal: Journal, num_workers: int, **kwargs: Any):
        """Build from a listing with files.

        Args:
            listing: what to store; the trouble with its images is added to `listing.found`.
            journal: of this preparation.
            num_workers: threads that decode.
            **kwargs: of the TFDS builder.
        """
        super().__init__(**kwargs)
        self._listing = listing
        self._journal = journal
        self._num_workers = num_workers
        self._watch = DuplicateWatch(listing.found)

    def caption_splits(self) -> dict[str, SplitExamples]:
        """Give the usable images of each split of the listing."""
        return {
            split: SplitExamples(len(records), self._images(split, records), self._listing.total_bytes(split))
            for split, records in self._listing.splits.items()
        }

    def _images(self, split: str, records: list[CaptionRecord]) -> Iterator[tuple[CaptionRecord, bytes]]:
        files = self._listing.files or {}
        verdicts = in_parallel(
            lambda record: self._journal.image(record.file_name, files[record.file_name]), records, self._num_workers
        )
        progress = tqdm(verdicts, f"{self.name} {split}", len(records), unit=" images", disable=None)
        for record, (verdict, image) in zip(records, progress, strict=True):
            note_verdict(record.file_name, verdict, self._listing.found)
            if image is not None:
                self._watch.see(split, record.file_name, verdict)
                yield record, image


class DuplicateWatch:
    """Notices when the same file comes in two splits."""

    def __init__(self, found: Findings):
        """Note duplicates in `found`."""
        self._found = found
        self._seen: dict[str, tuple[str, str]] = {}

    def see(self, split: str, name: str, verdict: Verdict) -> None:
        """Take in one image; files that could not be read are no duplicates of each other."""
        if not verdict.sha256:
            return
        first_split, first_name = self._seen.setdefault(verdict.sha256, (split, name))
        if first_split != split:
            self._found.add("duplicate", name, f"{split}, also in {first_split} as {first_name}")


def note_verdict(name: str, verdict: Verdict, found: Findings) -> None:
    """Add the trouble of one image to the findings."""
    for kind, detail in verdict.troubles:
        found.add(kind, name, detail)


def in_parallel(work: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[R]:
    """Map over items in threads, in order, with only a few results waiting in memory."""
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 4 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
