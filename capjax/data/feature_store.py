"""Encoder features on disk, computed once: what training reads instead of images.

A store is a folder with one folder per split:

    <store>/store.json                 the key (dataset, encoder, weights hash, preprocessing), shapes, dtype
    <store>/<split>/images.sha256      fingerprint of the images that were encoded
    <store>/<split>/captions.jsonl     one record per image, in row order
    <store>/<split>/pooled-00003.npy   rows 3·1024 … 4·1024-1, float32 or float16
    <store>/<split>/grid-00003.npy     optional; float32 or float16, or else uint8 with
    <store>/<split>/scale-00003.npy    float32 [rows, F]: what one step of each feature of an image is worth

Every file appears whole or not at all, so a shard that exists is complete: an interrupted extraction resumes at the
missing ones. Which process writes which shard depends on their numbers alone, not on what is there already.
"""

import functools
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from capjax.data.caption_records import CaptionRecords, record_line
from capjax.data.feature_rows import FeatureRows
from capjax.errors import CapjaxError
from capjax.host.disk import remove_leftovers, write_atomically
from capjax.types import CaptionRecord, Features

FORMAT_VERSION = 2
ROWS_PER_SHARD = 1024
_FLOAT32 = np.dtype(np.float32)
_DTYPES = ("float32", "float16", "uint8")


class FeatureStore:
    """A folder of cached features; opened by `open_store` or made by `create_store`.

    Attributes:
        path: the folder.
        key: what the features depend on; two stores with equal keys hold interchangeable features.
        feature_size: F.
        num_positions: P, or None without grid features.
    """

    def __init__(self, path: pathlib.Path, header: Mapping[str, Any]) -> None:
        """Wrap the folder `path` with the content of its store.json."""
        self.path = path
        self.key: dict[str, Any] = dict(header["key"])
        self.feature_size: int = header["feature_size"]
        self.num_positions: int | None = header["num_positions"]
        self.dtype = np.dtype(header["dtype"])

    @property
    def _names(self) -> tuple[str, ...]:
        """The arrays of a shard."""
        grid = ("grid", "scale") if self.dtype == np.uint8 else ("grid",)
        return ("pooled", *grid) if self.num_positions else ("pooled",)

    def _dtype_of(self, name: str) -> np.dtype:
        """The dtype that an array is stored in: what is small is not worth eight bits."""
        return self.dtype if name == "grid" or self.dtype != np.uint8 else np.dtype(np.float32)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows, complete or not."""
        return tuple(sorted(p.parent.name for p in self.path.glob("*/captions.jsonl")))

    def bytes_needed(self, num_images: int) -> int:
        """Predict the size on disk of the features of `num_images` images."""
        sizes = {"pooled": 1, "grid": self.num_positions or 0, "scale": 1}
        return num_images * self.feature_size * sum(sizes[n] * self._dtype_of(n).itemsize for n in self._names)

    def begin_split(self, split: str, records: Sequence[CaptionRecord], images_sha256: str = "") -> None:
        """Fix the rows of a split. Where that was done before, only captions may have changed, which are taken over.

        Args:
            split: its name.
            records: of its images.
            images_sha256: fingerprint of the images, "" if they are not known.

        Raises:
            CapjaxError: if the split was begun with other images.
        """
        folder = self.path / split
        remove_leftovers(folder)
        if (folder / "captions.jsonl").exists():
            if self._has_captions(split, records, images_sha256):
                return
        write_atomically(folder / "images.sha256", images_sha256)
        write_atomically(folder / "captions.jsonl", map(record_line, records))

    def images_sha256(self, split: str) -> str:
        """Give what `begin_split` was told of the images of a split; "" if that is not known."""
        path = self.path / split / "images.sha256"
        return path.read_text(errors="replace") if path.exists() else ""

    def check_split(self, split: str, records: Sequence[CaptionRecord], images_sha256: str | None = None) -> None:
        """Refuse a split whose features or captions are not those of the dataset as it is now.

        Args:
            split: its name.
            records: of the dataset.
            images_sha256: fingerprint of its images; None leaves them uncompared.

        Raises:
            CapjaxError: if images or captions have changed.
        """
        if not self._has_captions(split, records, images_sha256):
            raise CapjaxError(
                f"the captions of split {split!r} in {self.path} are not those of the dataset, which was prepared "
                "again; run capjax features once more: it takes the new captions and keeps the features"
            )

    def _has_captions(self, split: str, records: Sequence[CaptionRecord], images_sha256: str | None) -> bool:
        """Tell whether a split has the captions of the dataset.

        Raises:
            CapjaxError: if it is of other images.
        """
        stored, path = self.records(split), self.path / split / "images.sha256"
        changed = images_sha256 is not None and path.exists() and path.read_bytes() != images_sha256.encode()
        same = stored.same_as(records)
        same_images = same or (
            len(stored) == len(records) and all(a.image_id == b.image_id for a, b in zip(stored, records, strict=True))
        )
        if changed or not same_images:
            raise CapjaxError(
                f"expected split {split!r} of the feature store {self.path} to hold the images of the dataset, "
                f"found others; delete {self.path / split} and run capjax features to extract them again"
            )
        return same

    def missing_shards(self, split: str) -> list[range]:
        """List the row ranges that are not on disk yet."""
        return [rows for rows in self.shards(split) if not self.has_shard(split, rows)]

    def shards(self, split: str) -> list[range]:
        """List all row ranges, on disk or not."""
        num_rows = self.num_rows(split)
        return [range(i, min(i + ROWS_PER_SHARD, num_rows)) for i in range(0, num_rows, ROWS_PER_SHARD)]

    def has_shard(self, split: str, rows: range) -> bool:
        """Tell whether the features of a row range are on disk."""
        return all(self._shard(split, name, rows.start).exists() for name in self._names)

    def write_shard(self, split: str, rows: range, features: Features) -> None:
        """Write the features of the given rows, one of the ranges of `missing_shards`.

        Raises:
            CapjaxError: if the features have another shape than the store, or its dtype cannot hold them.
        """
        arrays = {"pooled": features.pooled} | ({"grid": features.grid} if self.num_positions else {})
        shapes = {"pooled": (len(rows), self.feature_size), "grid": (len(rows), self.num_positions, self.feature_size)}
        for name, array in arrays.items():
            if array is None or array.shape != shapes[name]:
                raise CapjaxError(
                    f"expected {name} features of shape {shapes[name]}, got {getattr(array, 'shape', None)}"
                )
            self._check_finite(split, rows, name, array, "NaN or infinity")
        if "scale" in self._names:
            arrays["grid"], arrays["scale"] = _in_eight_bits(features.grid)
        for name, array in arrays.items():
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(array, self._dtype_of(name))
            self._check_finite(split, rows, name, array, f"values that {self.dtype} cannot hold; use float32")
            header = _npy_header(array.shape, array.dtype)
            write_atomically(self._shard(split, name, rows.start), (header, array.data.cast("B")))

    def _check_finite(self, split: str, rows: range, name: str, array: np.ndarray, trouble: str) -> None:
        finite = np.isfinite(array)
        if not finite.all():
            row = rows[int(np.argmin(finite.reshape(len(rows), -1).all(axis=1)))]
            image = self.records(split)[row].file_name
            raise CapjaxError(f"expected finite {name} features of {image}, got {trouble}")

    def records(self, split: str) -> CaptionRecords:
        """Open the captions of a split, in row order.

        Raises:
            CapjaxError: if the store has no such split; later, if what is read is damaged.
        """
        return CaptionRecords(self._captions(split), f"delete {self.path / split} and run capjax features again")

    def num_rows(self, split: str) -> int:
        """Count the images of a split, without reading their captions.

        Raises:
            CapjaxError: if the store has no such split.
        """
        return len(self.records(split))

    def _captions(self, split: str) -> pathlib.Path:
        path = self.path / split / "captions.jsonl"
        if not path.exists():
            raise CapjaxError(
                f"expected a split out of {list(self.splits)} in the feature store {self.path}, got {split!r}"
            )
        return path

    def features(self, split: str, grid: bool = False, dtype: np.dtype = _FLOAT32) -> FeatureRows:
        """Open the rows of a complete split for random access.

        Args:
            split: its name.
            grid: read grid features beside the pooled ones.
            dtype: to give them in, whatever they are stored in.

        Raises:
            CapjaxError: if rows are missing or damaged, or grid features are wanted and were not stored.
        """
        shards = self.shards(split)
        num_rows = shards[-1].stop if shards else 0
        missing = [rows for rows in shards if not self.has_shard(split, rows)]
        if missing:
            raise CapjaxError(
                f"expected {num_rows} rows of split {split!r} in {self.path}, {sum(map(len, missing))} are missing; "
                "run capjax features again, it continues where it stopped"
            )
        if grid and not self.num_positions:
            raise CapjaxError(f"expected grid features in {self.path}, it holds pooled ones only; extract with grid")
        names = self._names if grid else ("pooled",)
        for rows in shards:
            for name in names:
                path, expected = self._shard(split, name, rows.start), self._shard_bytes(name, len(rows))
                if path.stat().st_size != expected:
                    raise CapjaxError(
                        f"expected {expected:,} bytes in {path}, got {path.stat().st_size:,}: it is damaged; delete it "
                        "and run capjax features again"
                    )
        paths = {name: [self._shard(split, name, rows.start) for rows in shards] for name in names}
        kinds = {name: (self._row_shape(name), self._dtype_of(name)) for name in names}
        return FeatureRows(paths, kinds, num_rows, ROWS_PER_SHARD, dtype)

    def _shard_bytes(self, name: str, num_rows: int) -> int:
        """Return the size of a shard's file of an array."""
        shape, dtype = (num_rows, *self._row_shape(name)), self._dtype_of(name)
        return len(_npy_header(shape, dtype)) + math.prod(shape) * dtype.itemsize

    def _row_shape(self, name: str) -> tuple[int, ...]:
        return (*((self.num_positions,) if name == "grid" else ()), self.feature_size)

    def _shard(self, split: str, name: str, start: int) -> pathlib.Path:
        return self.path / split / f"{name}-{start // ROWS_PER_SHARD:05d}.npy"


@functools.cache
def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def create_store(
    path: str | os.PathLike[str],
    key: Mapping[str, Any],
    feature_size: int,
    num_positions: int | None = None,
    dtype: str = "float32",
) -> FeatureStore:
    """Make a store, or open the one that is there if it was made with the same key, shapes and dtype.

    Args:
        path: its folder.
        key: what the features depend on, as JSON values.
        feature_size: F.
        num_positions: P, or None to keep pooled features only.
        dtype: `float32`, `float16` for half the size, or `uint8` for a grid of a quarter of it, features that are not
            negative in steps of 1/255 of their largest value in an image.

    Raises:
        CapjaxError: if the folder holds a store that differs.
    """
    path = pathlib.Path(path)
    header = {
        "format_version": FORMAT_VERSION,
        "key": dict(key),
        "feature_size": feature_size,
        "num_positions": num_positions,
        "dtype": dtype,
    }
    if (path / "store.json").exists():
        found = _read_header(path)
        for field in header:
            _refuse_difference(path, field, header[field], found.get(field))
        return FeatureStore(path, found)
    write_atomically(path / "store.json", json.dumps(header, indent=1))
    return FeatureStore(path, header)


def open_store(path: str | os.PathLike[str], key: Mapping[str, Any]) -> FeatureStore:
    """Open a store.

    Args:
        path: its folder.
        key: what the caller knows of what the features depend on; the rest of the store's key is not looked at.

    Raises:
        CapjaxError: if there is no store, it is of another version, or its key differs (stale features).
    """
    path = pathlib.Path(path)
    header = _read_header(path)
    for name in key:
        _refuse_difference(path, name, key[name], header["key"].get(name))
    return FeatureStore(path, header)


def _read_header(path: pathlib.Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "store.json").read_text())
    except FileNotFoundError:
        raise CapjaxError(f"expected a feature store at {path}, found none; make it with capjax features") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CapjaxError(f"expected JSON in {path}/store.json, got something else ({error})") from None
    if not isinstance(header, dict):
        raise CapjaxError(f"expected an object in {path}/store.json, got {type(header).__name__}; delete that folder")
    if header.get("format_version") != FORMAT_VERSION:
        raise CapjaxError(
            f"expected feature store format {FORMAT_VERSION} at {path}, got {header.get('format_version')}; "
            "delete that folder and run capjax features to make it anew"
        )
    usable = {
        "key": isinstance(header.get("key"), dict),
        "feature_size": _is_size(header.get("feature_size")),
        "num_positions": header.get("num_positions", 0) is None or _is_size(header.get("num_positions")),
        "dtype": header.get("dtype") in _DTYPES,
    }
    if wrong := [field for field, is_usable in usable.items() if not is_usable]:
        raise CapjaxError(
            f"expected a usable {wrong[0]!r} in {path}/store.json, got {str(header.get(wrong[0]))[:80]!r}; delete that "
            "folder and run capjax features to make it anew"
        )
    return header


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _refuse_difference(path: pathlib.Path, field: str, expected: Any, found: Any) -> None:
    if expected == found:
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        if ("encoder" in expected) != ("encoder" in found) and field == "key":
            kinds = ("that another program made", "that an encoder computed")
            wanted, held = (kinds["encoder" in key] for key in (expected, found))
            raise CapjaxError(
                f"expected features {wanted} in {path}, it holds such {held}; choose another --config.features.dir"
            )
        for name in sorted({*expected, *found}):
            _refuse_difference(path, f"{field}.{name}", expected.get(name), found.get(name))
    raise CapjaxError(
        f"expected features with {field} = {expected!r}, the store {path} was made with {found!r}; "
        "choose another folder or delete this one"
    )


def _in_eight_bits(
    grid: Float[np.ndarray, "N P F"],
) -> tuple[UInt8[np.ndarray, "N P F"], Float[np.ndarray, "N F"]]:
    """Divide features into 255 steps; return numbers of steps, and what a step is worth.

    Raises:
        CapjaxError: if a feature is negative.
    """
    if grid.min(initial=0.0) < 0:
        raise CapjaxError(
            "expected grid features of at least 0 for features.dtype=uint8, as ReLU makes them, got others; use float16"
        )
    scale = grid.max(axis=1) / np.float32(255)
    steps = np.divide(grid, scale[:, None], out=np.zeros_like(grid), where=scale[:, None] > 0)
    return np.rint(steps, out=steps).astype(np.uint8), scale
