"""The captions of a split as they lie on the disk: a line of JSON per image, read when it is asked for."""

import copy
import functools
import json
import operator
import os
import pathlib
from array import array
from collections.abc import Container, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from capjax.errors import CapjaxError
from capjax.types import CaptionRecord

_BLOCK_BYTES = 1 << 24


def sidecar_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """Name the file of a split's records in the directory of a dataset."""
    return directory / f"captions-{split}.jsonl"


def record_line(record: CaptionRecord) -> str:
    """Write a record as one line of JSON."""
    return json.dumps(vars(record), ensure_ascii=False) + "\n"


def record_identity(record: CaptionRecord) -> bytes:
    """Return what tells the captions of an image from others, for a digest."""
    return json.dumps([record.image_id, record.captions]).encode()


class CaptionRecords(Sequence):
    """The records in a file, of which none is kept in memory: millions take 8 bytes each. A slice selects some of them.

    Attributes:
        path: the file.
    """

    def __init__(self, path: pathlib.Path, remedy: str) -> None:
        """Take the file, which is opened when a record is first asked for.

        Args:
            path: of the file.
            remedy: what to do if it is damaged.
        """
        self.path = path
        self._remedy = remedy

    @functools.cached_property
    def _file(self) -> BinaryIO:
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise CapjaxError(f"expected to read {self.path}: {error.strerror}; {self._remedy}") from None

    @functools.cached_property
    def _starts(self) -> Int64[np.ndarray, " _"]:
        """Where each line begins, and where the last ends."""
        starts, at = [np.zeros(1, np.int64)], 0
        self._file.seek(0)
        for block in _blocks(self._file):
            starts.append(at + 1 + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")))
            at += len(block)
        found = np.concatenate(starts)
        return found if found[-1] == at else np.append(found, at)

    @functools.cached_property
    def _lines(self) -> Sequence[int]:
        """The numbers of the selected lines."""
        return range(len(self._starts) - 1)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i: Any) -> Any:
        """Read a record, or select some.

        Raises:
            CapjaxError: if its line holds something else.
        """
        return self._select(self._lines[i]) if isinstance(i, slice) else self._read(self._lines[operator.index(i)])

    def __iter__(self) -> Iterator[CaptionRecord]:
        return map(self._read, self._lines)

    def of_images(self, image_ids: Container[int]) -> "CaptionRecords":
        """Select the records of some images."""
        lines = (line for line in self._lines if self._read(line).image_id in image_ids)
        return self._select(array("q", lines))

    def same_as(self, other: Sequence[CaptionRecord]) -> bool:
        """Tell whether other records are the same, in the same order."""
        if isinstance(other, CaptionRecords) and _same_content(self.path, other.path):
            return len(self) == len(other) and all(map(operator.eq, self._lines, other._lines))
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def _select(self, lines: Sequence[int]) -> "CaptionRecords":
        selected = copy.copy(self)
        selected._lines = lines
        return selected

    def _read(self, line: int) -> CaptionRecord:
        start, end = self._starts[line : line + 2].tolist()
        try:
            # Not a map: one of a file that somebody cuts off ends the process without a word.
            row = json.loads(os.pread(self._file.fileno(), end - start, start))
            image_id, file_name, captions = row["image_id"], row["file_name"], row["captions"]
            if type(image_id) is not int or image_id != np.int64(image_id) or not isinstance(captions, list):
                raise TypeError("image_id is no whole number, or captions no list")
            if not all(type(text) is str for text in (file_name, *captions)):
                raise TypeError("file_name or a caption is no text")
            return CaptionRecord(image_id, file_name, tuple(captions))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CapjaxError(
                f"expected a caption record in each line of {self.path}, got {error!r} in line {line + 1}; "
                f"{self._remedy}"
            ) from None


def _same_content(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Tell whether files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as a, open(other, "rb") as b:
        return all(map(operator.eq, _blocks(a), _blocks(b)))


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK_BYTES), b"")
