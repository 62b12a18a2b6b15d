"""Which tensor of a foreign Inception V3 is which variable of ours, and the assembly that refuses what does not fit.

Keras numbers its layers in the order of creation, which is the order of `inception_v3.conv_units`; convolution k
belongs to BatchNorm k by the number in their names (the order inside the file is another one). torchvision's names say
where a layer is; inside a block they are ours.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from capjax.errors import CapjaxError
from capjax.models import inception_v3
from capjax.pretrained import encoder_file
from capjax.pretrained.keras_h5 import Layers

TORCHVISION_BLOCKS = dict(
    zip(
        inception_v3.ENDPOINTS,
        [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")],
        strict=True,
    )
)
_TORCHVISION_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_TORCHVISION_UNUSED = re.compile(r"^AuxLogits\.|\.num_batches_tracked$")

_HWIO = (0, 1, 2, 3)
_HWIO_FROM_OIHW = (2, 3, 1, 0)


class Source(NamedTuple):
    """The foreign tensor for one of our variables; `np.transpose(theirs, axes)` is ours."""

    name: str
    axes: tuple[int, ...] = (0,)


class LoadedTensor(NamedTuple):
    """One line of the report: which variable was loaded from what, and what is in it."""

    target: str
    source: str
    shape: tuple[int, ...]
    mean: float
    std: float


class Conversion(NamedTuple):
    """Converted weights with the report of what was loaded where and which foreign tensors were left out."""

    config: encoder_file.EncoderConfig
    variables: encoder_file.Variables
    loaded: list[LoadedTensor]
    skipped: dict[str, tuple[int, ...]]


def from_keras(layers: Layers, what: str) -> Conversion:
    """Assemble the encoder from the layers of a Keras file, with the classification top where the file has it.

    Args:
        layers: as `keras_h5.read_layers` returns them.
        what: name of the file, for messages and as the source of the weights.

    Raises:
        CapjaxError: a layer is missing or left over, or a shape or a value does not fit.
    """
    convs, norms = _numbered(layers, "conv2d", what), _numbered(layers, "batch_normalization", what)
    sources = {}
    for index, (block, unit, _) in enumerate(inception_v3.conv_units()):
        conv, norm = convs(index), norms(index)
        sources[f"params/{block}/{unit}/kernel"] = Source(f"{conv}/kernel", _HWIO)
        sources[f"params/{block}/{unit}/norm/bias"] = Source(f"{norm}/beta")
        sources[f"batch_stats/{block}/{unit}/norm/mean"] = Source(f"{norm}/moving_mean")
        sources[f"batch_stats/{block}/{unit}/norm/var"] = Source(f"{norm}/moving_variance")
    num_classes = None
    if "predictions" in layers:
        sources["params/classifier/kernel"] = Source("predictions/kernel", (0, 1))
        sources["params/classifier/bias"] = Source("predictions/bias")
        num_classes = _num_classes(next(iter(layers["predictions"].values())))
    config = encoder_file.EncoderConfig(convention="keras", num_classes=num_classes, source=what)
    tensors = {f"{layer}/{name}": array for layer, weights in layers.items() for name, array in weights.items()}
    return _assemble(config, sources, tensors, skipped={})


def from_torchvision(
    tensors: Mapping[str, np.ndarray], what: str, input_scaling: inception_v3.InputScaling = "symmetric"
) -> Conversion:
    """Assemble the encoder from torchvision's state dict; the auxiliary classifier is left out.

    Args:
        tensors: the state dict.
        what: name of the file, for messages and as the source of the weights.
        input_scaling: "imagenet" for weights trained with `transform_input=False`.

    Raises:
        CapjaxError: a tensor is missing or left over, or a shape or a value does not fit.
    """
    num_classes = _num_classes(tensors["fc.bias"]) if "fc.bias" in tensors else None
    config = encoder_file.EncoderConfig(
        convention="torchvision", input_scaling=input_scaling, num_classes=num_classes, source=what
    )
    skipped = {name: array.shape for name, array in tensors.items() if _TORCHVISION_UNUSED.search(name)}
    used = {name: array for name, array in tensors.items() if name not in skipped}
    return _assemble(config, _torchvision_sources(num_classes is not None), used, skipped)


def to_torchvision(variables: encoder_file.Variables) -> dict[str, np.ndarray]:
    """Return variables of the torchvision convention as torchvision's state dict (undoes `from_torchvision`)."""
    tensors = encoder_file.flatten(variables)
    return {
        source.name: np.ascontiguousarray(np.transpose(tensors[target], np.argsort(source.axes)))
        for target, source in _torchvision_sources("params/classifier/bias" in tensors).items()
    }


def _torchvision_sources(with_top: bool) -> dict[str, Source]:
    sources = {}
    stem = iter(_TORCHVISION_STEM)
    for block, unit, _ in inception_v3.conv_units():
        theirs = next(stem) if block == "stem" else f"{TORCHVISION_BLOCKS[block]}.{unit}"
        sources[f"params/{block}/{unit}/kernel"] = Source(f"{theirs}.conv.weight", _HWIO_FROM_OIHW)
        sources[f"params/{block}/{unit}/norm/scale"] = Source(f"{theirs}.bn.weight")
        sources[f"params/{block}/{unit}/norm/bias"] = Source(f"{theirs}.bn.bias")
        sources[f"batch_stats/{block}/{unit}/norm/mean"] = Source(f"{theirs}.bn.running_mean")
        sources[f"batch_stats/{block}/{unit}/norm/var"] = Source(f"{theirs}.bn.running_var")
    if with_top:
        sources["params/classifier/kernel"] = Source("fc.weight", (1, 0))
        sources["params/classifier/bias"] = Source("fc.bias")
    return sources


def _numbered(layers: Layers, kind: str, what: str) -> Callable[[int], str]:
    """Return the function from position to layer name: conv2d_1…94, or conv2d, conv2d_1…93, or from any number on."""
    numbers = [int(match[1] or 0) for name in layers if (match := re.fullmatch(rf"{kind}(?:_(\d+))?", name))]
    if not numbers:
        raise CapjaxError(f"{what} has no layer {kind}…: expected the weights of Keras' InceptionV3")
    first = min(numbers)
    return lambda index: f"{kind}_{first + index}" if first + index else kind


def _num_classes(top: np.ndarray) -> int:
    return math.prod(top.shape[-1:]) or 1  # a shape that makes no sense is left to the comparison of shapes


def _assemble(
    config: encoder_file.EncoderConfig,
    sources: Mapping[str, Source],
    tensors: Mapping[str, np.ndarray],
    skipped: dict[str, tuple[int, ...]],
) -> Conversion:
    shapes = encoder_file.variable_shapes(config)
    expected = {}
    for target, source in sources.items():
        expected[source.name] = tuple(shapes[target][axis] for axis in np.argsort(source.axes))
    encoder_file.check_shapes({name: array.shape for name, array in tensors.items()}, expected, config.source)
    loaded, variables = [], {}
    for target, source in sources.items():
        array = tensors[source.name].astype(np.float32)
        variables[target] = np.ascontiguousarray(np.transpose(array, source.axes))
        loaded.append(describe(target, variables[target], source.name))
    return Conversion(config, encoder_file.unflatten(variables), loaded, skipped)


def describe(target: str, array: np.ndarray, source: str) -> LoadedTensor:
    """Summarise one tensor.

    Raises:
        CapjaxError: it holds values that are not finite, or negative variances.
    """
    if not np.isfinite(array).all():
        count = np.count_nonzero(~np.isfinite(array))
        raise CapjaxError(f"{source} ({target}) holds {count} values that are not finite")
    if target.endswith("/var") and array.min() < 0:
        raise CapjaxError(f"{source} ({target}) holds negative variances")
    return LoadedTensor(target, source, array.shape, float(array.mean()), float(array.std()))
