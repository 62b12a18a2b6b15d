"""Reads the weights in a Keras HDF5 file, without Keras: {layer name: {weight name: array}}.

Three layouts are understood:
- legacy weights (the published ImageNet files, `save_weights("x.h5")` of Keras 2): a group per layer, with the
  attributes `layer_names` on the root and `weight_names` on each group, split into numbered pieces where they are long;
- legacy whole model (`model.save("x.h5")`): the same below the group `model_weights`;
- Keras 3 `x.weights.h5`: `layers/<position>/vars/<index>`, where an attribute of `vars` has the layer's name.
"""

import math
import os
import zlib
from collections.abc import Iterator

import h5py
import numpy as np

from capjax.errors import CapjaxError

Layers = dict[str, dict[str, np.ndarray]]

# What stands where a group is expected: in files of another make, also a dataset.
_Node = h5py.Group | h5py.Dataset

# Most that is read of a file, eleven times the published weights; compressed bytes could claim anything.
MOST_BYTES = 2**30

_MOMENTS = ("beta", "moving_mean", "moving_variance")
_BATCH_NORM_VARS = {3: _MOMENTS, 4: ("gamma", *_MOMENTS)}


def read_layers(path: str | os.PathLike) -> Layers:
    """Read all layers that have weights.

    Raises:
        CapjaxError: the file is unreadable or truncated, has none of the three layouts, or does not hold the weights
            that it claims.
    """
    try:
        with h5py.File(path, "r") as file:
            root, weights = _child(file, "model_weights") if "model_weights" in file.keys() else file, _Weights()
            if list(_attribute_pieces(root, "layer_names")):
                return _read_legacy(root, weights)
            if "layers" in file.keys():
                return _read_keras_3(_child(file, "layers"), weights)
    except CapjaxError as error:
        raise CapjaxError(f"{path}: {error}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, zlib.error) as error:
        raise CapjaxError(f"cannot read {path}, is it complete? {error!r}") from error
    raise CapjaxError(f"{path} is HDF5 but not Keras weights: expected the attribute layer_names or a group `layers`")


class _Weights:
    """Reads weights that a file wholly holds, compressed or not, up to `MOST_BYTES` together.

    Others, such as those that were declared and never written, could fill the memory.
    """

    def __init__(self) -> None:
        """Begin with a file."""
        self._room = MOST_BYTES

    def read(self, dataset: _Node) -> np.ndarray:
        """Read one weight.

        Raises:
            CapjaxError: if the file does not hold it, or too much was read already.
        """
        if dataset.shape is None or dataset.dtype.kind not in "fiu":
            raise CapjaxError(f"expected weights that are real numbers, got {dataset.name} of {dataset.dtype}")
        self._room -= dataset.nbytes
        if self._room < 0:
            raise CapjaxError(
                f"expected weights of at most {MOST_BYTES:,} bytes together, got more with {dataset.name} of "
                f"{dataset.nbytes:,} bytes; are they those of an Inception V3?"
            )
        if dataset.external or not _is_whole(dataset):
            raise CapjaxError(
                f"expected a file that holds all of its weights, as they are or deflated, got {dataset.name} of "
                f"{dataset.nbytes:,} bytes in {dataset.id.get_storage_size():,}; load it in Keras and save it again"
            )
        return dataset[()]


def _is_whole(dataset: h5py.Dataset) -> bool:
    """Tell whether the file holds all of a dataset and nothing beside it, before HDF5 makes room for what it claims."""
    if not dataset.chunks:
        return dataset.id.get_storage_size() == dataset.nbytes
    if any(chunk > size for chunk, size in zip(dataset.chunks, dataset.shape, strict=True)):
        return False
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    deflate, checksum = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32
    if len(set(filters)) < len(filters) or not set(filters) <= {h5py.h5z.FILTER_SHUFFLE, deflate, checksum}:
        return False
    expected = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if checksum in filters and filters[-1] != deflate and deflate in filters:
        filters.remove(checksum)  # behind the deflated bytes, it is none of theirs
    expected += 4 if checksum in filters else 0
    pieces = (-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() != math.prod(pieces):
        return False
    for i in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(i)
        size = chunk.size
        if chunk.filter_mask:
            return False
        if deflate in filters:
            _, deflated = dataset.id.read_direct_chunk(chunk.chunk_offset)
            # One byte more than there should be is enough to tell.
            size = len(zlib.decompressobj().decompress(deflated, expected + 1))
        if size != expected:
            return False
    return True


def _attribute_pieces(group: _Node, name: str) -> Iterator[str]:
    """Yield the strings of an attribute that Keras may have split into name0, name1, …"""
    pieces = [name] if name in group.attrs else []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(f"{name}{len(pieces)}")
    for piece in pieces:
        for value in group.attrs[piece]:
            yield value.decode() if isinstance(value, bytes) else str(value)


def _child(group: _Node, path: str) -> _Node:
    """Return what a path leads to inside the file: a link may name another file, or a pipe that never ends.

    Raises:
        CapjaxError: if there is a link to another place.
    """
    for name in filter(None, path.split("/")):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink | None):
            raise CapjaxError(f"expected a file that holds all of its weights, got a link to another place at {path}")
        group = group[name]
    return group


def _read_legacy(root: _Node, weights: _Weights) -> Layers:
    layers: Layers = {}
    for group in (_child(root, name) for name in _attribute_pieces(root, "layer_names")):
        for path in _attribute_pieces(group, "weight_names"):
            # A model that is a layer of another has all its weights in one group: the path knows the layer.
            layer, weight = path.split("/")[-2:]
            layers.setdefault(layer, {})[weight.removesuffix(":0")] = weights.read(_child(group, path))
    return layers


def _read_keras_3(root: _Node, weights: _Weights) -> Layers:
    layers: Layers = {}

    def visit(path: str, item: _Node) -> None:
        if not path.endswith("vars") or not len(item):
            return
        if "name" not in item.attrs:
            raise CapjaxError(
                "this .weights.h5 does not name its layers (written by an early Keras 3); "
                "load it in a current Keras and save it again"
            )
        name = str(item.attrs["name"])
        arrays = [weights.read(_child(item, str(index))) for index in range(len(item))]
        names = _BATCH_NORM_VARS.get(len(arrays)) if name.startswith("batch_normalization") else ("kernel", "bias")
        layers[name] = dict(zip(names or map(str, range(len(arrays))), arrays, strict=False))

    root.visititems(visit)
    return layers
