"""Rows of a feature store, read one by one in any order: what a job sees of its images."""

import functools
import math
import os
import pathlib
import resource
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from capjax.errors import CapjaxError
from capjax.host.disk import NPZ_ERRORS
from capjax.types import Features


class FeatureRows:
    """Random access to features: `rows[i]` is `Features` of one image, [F] and [P, F] or None."""

    def __init__(
        self,
        paths: Mapping[str, Sequence[pathlib.Path]],
        kinds: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        num_rows: int,
        rows_per_shard: int,
        dtype: np.dtype,
    ) -> None:
        """Take the shard files, each of which is opened when a row of it is first read.

        Args:
            paths: the files of each array, `pooled`, and `grid` and `scale` as far as they are wanted.
            kinds: shape and dtype of a row of each array, as it is stored.
            num_rows: of all shards.
            rows_per_shard: of every shard but the last, which may have fewer.
            dtype: to give features in, whatever they are stored in.
        """
        self._paths = {name: list(files) for name, files in paths.items()}
        self._kinds = dict(kinds)
        self._num_rows, self._rows_per_shard, self._dtype = num_rows, rows_per_shard, dtype
        self._open = functools.lru_cache(_most_files())(_Shard)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files themselves.
        return {
            "paths": self._paths,
            "kinds": self._kinds,
            "num_rows": self._num_rows,
            "rows_per_shard": self._rows_per_shard,
            "dtype": self._dtype,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @property
    def place(self) -> str:
        """Where they lie, for messages."""
        return f"the features in {self._paths['pooled'][0].parent}"

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, i: int) -> Features:
        shard, row = divmod(int(i), self._rows_per_shard)
        values = {name: self._open(files[shard], *self._kinds[name])[row] for name, files in self._paths.items()}
        grid = values["grid"] * values["scale"] if "scale" in values else values.get("grid")
        pooled, grid = (None if x is None else x.astype(self._dtype, copy=False) for x in (values["pooled"], grid))
        return Features(pooled, grid)

    def __iter__(self) -> Iterator[Features]:
        return (self[i] for i in range(len(self)))


_PARSING = threading.Lock()
"""Python 3.11 counts how deep its parser is for all threads together, and raises SystemError where two parse at once
(https://github.com/python/cpython/issues/106905); NumPy has it parse the headers of arrays."""


class _Shard:
    """A shard's file of one array: `shard[row]` is float32 [F] or [P, F].

    Rows are read, not mapped into memory: where a file was cut off or its disk fails, a map ends the process by SIGBUS.
    """

    def __init__(self, path: pathlib.Path, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Open the file.

        Raises:
            CapjaxError: if it is not there, or is no array of such rows.
        """
        self._path, self._shape, self._dtype = path, row_shape, dtype
        try:
            self._file = open(path, "rb", buffering=0)
            weakref.finalize(self, self._file.close)
            with _PARSING:
                np.lib.format.read_magic(self._file)
                (_, *shape), is_fortran, found = np.lib.format.read_array_header_1_0(self._file)
            if (tuple(shape), is_fortran, found) != (row_shape, False, dtype):
                raise ValueError(f"rows of {found} {tuple(shape)} instead of {dtype} {row_shape}")
        except NPZ_ERRORS as error:
            raise self._damaged(error) from None
        self._start = self._file.tell()
        self._row_bytes = math.prod(row_shape) * dtype.itemsize

    def __getitem__(self, row: int) -> Float[np.ndarray, "..."]:
        """Read a row; threads may do so at once.

        Raises:
            CapjaxError: if the file ends before it, cannot be read, or holds a number that is not finite.
        """
        try:
            content = os.pread(self._file.fileno(), self._row_bytes, self._start + row * self._row_bytes)
        except OSError as error:
            raise self._damaged(error) from None
        if len(content) < self._row_bytes:
            raise self._damaged(f"it ends before row {row}")
        values = np.frombuffer(content, self._dtype).reshape(self._shape).astype(np.float32, copy=False)
        if self._dtype.kind == "f" and not np.isfinite(values).all():
            raise self._damaged(f"row {row} has values that are not finite")
        return values

    def _damaged(self, error: Exception | str) -> CapjaxError:
        reason = getattr(error, "strerror", None) or error
        return CapjaxError(
            f"expected a readable shard of features, {self._path} is damaged ({reason}); put it back, or delete it and "
            "run capjax features again"
        )


def _most_files() -> int:
    """Return how many shards are kept open at a time: half of the files that the process may have open."""
    return max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
