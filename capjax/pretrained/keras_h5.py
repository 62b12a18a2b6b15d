"""Reads the weights in a Keras HDF5 file, without Keras: {layer name: {weight name: array}}.

Three layouts are understood:
- legacy weights (the published ImageNet files, `save_weights("x.h5")` of Keras 2): a group per layer, with the
  attributes `layer_names` on the root and `weight_names` on each group, split into numbered pieces where they are long;
- legacy whole model (`model.save("x.h5")`): the same below the group `model_weights`;
- Keras 3 `x.weights.h5`: `layers/<position>/vars/<index>`, where an attribute of `vars` has the layer's name.
"""

import os
from collections.abc import Iterator

import h5py
import numpy as np

from capjax.errors import CapjaxError

Layers = dict[str, dict[str, np.ndarray]]

# What stands where a group is expected: in files of another make, also a dataset.
_Node = h5py.Group | h5py.Dataset

_MOMENTS = ("beta", "moving_mean", "moving_variance")
_BATCH_NORM_VARS = {3: _MOMENTS, 4: ("gamma", *_MOMENTS)}


def read_layers(path: str | os.PathLike) -> Layers:
    """Read all layers that have weights.

    Raises:
        CapjaxError: the file is unreadable or truncated, has none of the three layouts, or claims more weights than it
            holds.
    """
    try:
        with h5py.File(path, "r") as file:
            root, weights = file.get("model_weights", file), _Weights(os.path.getsize(path))
            if list(_attribute_pieces(root, "layer_names")):
                return _read_legacy(root, weights)
            if "layers" in file:
                return _read_keras_3(file["layers"], weights)
    except CapjaxError as error:
        raise CapjaxError(f"{path}: {error}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CapjaxError(f"cannot read {path}, is it complete? {error!r}") from error
    raise CapjaxError(f"{path} is HDF5 but not Keras weights: expected the attribute layer_names or a group `layers`")


class _Weights:
    """Reads weights that are stored as Keras does: whole and uncompressed, together no larger than the file.

    Others, compressed ones and those that were declared and never written, could fill the memory.
    """

    def __init__(self, num_bytes: int) -> None:
        """Begin with a file of `num_bytes`."""
        self._room = num_bytes

    def read(self, dataset: _Node) -> np.ndarray:
        """Read one weight.

        Raises:
            CapjaxError: if it is stored in another way.
        """
        stored = dataset.id.get_storage_size()
        self._room -= dataset.nbytes
        if dataset.chunks or dataset.external or stored != dataset.nbytes or self._room < 0:
            raise CapjaxError(
                "expected the weights of Keras whole and uncompressed, together no larger than the file, got "
                f"{dataset.name} of {dataset.nbytes:,} bytes in {stored:,}; load it in Keras and save it again"
            )
        return dataset[()]


def _attribute_pieces(group: _Node, name: str) -> Iterator[str]:
    """Yield the strings of an attribute that Keras may have split into name0, name1, …"""
    pieces = [name] if name in group.attrs else []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(f"{name}{len(pieces)}")
    for piece in pieces:
        for value in group.attrs[piece]:
            yield value.decode() if isinstance(value, bytes) else str(value)


def _read_legacy(root: _Node, weights: _Weights) -> Layers:
    layers: Layers = {}
    for group_name in _attribute_pieces(root, "layer_names"):
        for path in _attribute_pieces(root[group_name], "weight_names"):
            # A model that is a layer of another has all its weights in one group: the path knows the layer.
            layer, weight = path.split("/")[-2:]
            layers.setdefault(layer, {})[weight.removesuffix(":0")] = weights.read(root[group_name][path])
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
        arrays = [weights.read(item[str(index)]) for index in range(len(item))]
        names = _BATCH_NORM_VARS.get(len(arrays)) if name.startswith("batch_normalization") else ("kernel", "bias")
        layers[name] = dict(zip(names or map(str, range(len(arrays))), arrays, strict=False))

    root.visititems(visit)
    return layers
