"""Features that another program computed, brought into a store."""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from capjax.data.feature_store import create_store
from capjax.errors import CapjaxError
from capjax.host.disk import NPZ_ERRORS, check_inflated, check_room
from capjax.types import CaptionRecord, Features


def import_npz(
    path: str | os.PathLike[str],
    store_path: str | os.PathLike[str],
    dataset: str,
    splits: Mapping[str, Sequence[CaptionRecord]],
) -> dict[str, tuple[int, int]]:
    """Bring features that another program computed into a store.

    Args:
        path: an `.npz` with `file_name` [N], `pooled` [N, F] and optionally `grid` [N, P, F], the latter possibly as
            integers with `grid_scale` (value = integer × scale).
        store_path: folder of the store to make, or to complete from the same file.
        dataset: its name.
        splits: the dataset's records by split; images are matched by file name.

    Returns:
        By split, how many images were imported and how many of the dataset the file lacks (those are left out).

    Raises:
        CapjaxError: if the file is no such archive, or has none of the dataset's images.
    """
    try:
        check_inflated(path)
        with np.load(path, allow_pickle=False) as archive:
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in archive["file_name"]]
            pooled = archive["pooled"]
            grid = archive["grid"] if "grid" in archive else None
            scale = archive["grid_scale"] if "grid_scale" in archive else np.float32(1)
        kinds = {array.dtype.kind for array in (pooled, grid, scale) if array is not None}
    except FileNotFoundError:
        raise CapjaxError(f"expected features at {path}, found no file there") from None
    except NPZ_ERRORS as error:
        raise CapjaxError(
            f"expected an .npz with file_name, pooled and optionally grid at {path}, got {error!r}"
        ) from None
    if not kinds <= set("fiu") or scale.shape not in ((), (1,), pooled.shape[1:]):
        raise CapjaxError(
            f"expected real numbers, and a grid_scale for all or for each of the F, in {path}; got pooled of "
            f"{pooled.dtype}, grid of {None if grid is None else grid.dtype}, grid_scale of {scale.dtype} {scale.shape}"
        )
    if (
        pooled.ndim != 2
        or len(names) != len(pooled)
        or (grid is not None and grid.shape[::2] != pooled.shape)
        or not (pooled.size and (grid is None or grid.size))
    ):
        raise CapjaxError(
            f"expected file_name [N], pooled [N, F], grid [N, P, F] in {path}, got {len(names)} names, "
            f"{pooled.shape}, {None if grid is None else grid.shape}"
        )
    rows_by_name = {name: i for i, name in enumerate(names)}
    if len(rows_by_name) < len(names):
        repeated = next(name for i, name in enumerate(names) if rows_by_name[name] != i)
        raise CapjaxError(f"expected each file_name once in {path}, got {repeated} twice")
    present = {split: [r for r in records if r.file_name in rows_by_name] for split, records in splits.items()}
    if not any(present.values()):
        raise CapjaxError(
            f"expected features of the dataset's images in {path}, none of its file names is in the dataset"
        )
    store = create_store(
        store_path,
        {"dataset": dataset, "imported": pathlib.Path(path).name, "sha256": _sha256(names, pooled, grid, scale)},
        pooled.shape[1],
        None if grid is None else grid.shape[1],
    )
    missing = {}
    for split, records in present.items():
        if records:
            store.begin_split(split, records)
            missing[split] = store.missing_shards(split)
    num_images = sum(len(rows) for shards in missing.values() for rows in shards)
    check_room(store.path, store.bytes_needed(num_images), f"features of {num_images:,} images")
    for split, shards in missing.items():
        for rows in shards:
            at = [rows_by_name[present[split][i].file_name] for i in rows]
            values = Features(
                pooled[at].astype(np.float32), None if grid is None else grid[at].astype(np.float32) * scale
            )
            store.write_shard(split, rows, values)
    return {split: (len(present[split]), len(records) - len(present[split])) for split, records in splits.items()}


def _sha256(names: Sequence[str], *arrays: np.ndarray | np.generic | None) -> str:
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass"))
    for array in arrays:
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
