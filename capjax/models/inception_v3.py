"""Inception V3 (Szegedy et al. 2016), the encoder: a batch of photographs in, pooled and grid features out.

`ARCHITECTURE` is the network as a table, in the order in which Keras creates its layers: a stem, then the blocks
mixed0 to mixed10, each a dict from branch name to the steps of that branch. The modules below only interpret the table,
and the converters of `capjax.pretrained` walk it too (`conv_units`), to find where each pretrained tensor belongs.

Two published sets of ImageNet weights exist, and they need slightly different networks:

| convention    | average pools inside blocks     | BatchNorm scale | running statistics keep |
| ------------- | ------------------------------- | --------------- | ----------------------- |
| `keras`       | mean of what is inside the map  | none            | 0.99 per step           |
| `torchvision` | padding counts, as zeros        | learnt          | 0.9 per step            |

BatchNorm's epsilon is 1e-3 in both, and both published networks see pixels in [-1, 1]: torchvision normalises with
ImageNet's mean and standard deviation, but its pretrained network undoes that first (`transform_input`). Weights
trained with `transform_input=False` want `input_scaling="imagenet"`.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from capjax.errors import CapjaxError
from capjax.types import Features

Convention = Literal["keras", "torchvision"]
InputScaling = Literal["symmetric", "imagenet"]

BATCH_NORM_EPSILON = 1e-3
_BATCH_NORM_MOMENTUM = {"keras": 0.99, "torchvision": 0.9}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Conv(NamedTuple):
    """A convolution without bias, BatchNorm, ReLU. `filters` is for depth multiplier 1."""

    filters: int
    height: int
    width: int
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


class Fork(NamedTuple):
    """Convolutions that read the same input; their outputs are concatenated."""

    convs: tuple[Conv, ...]


class AveragePool(NamedTuple):
    """3×3, stride 1, size kept; a 1×1 convolution follows."""


class MaxPool(NamedTuple):
    """3×3, stride 2, no padding."""


Step = Conv | Fork | AveragePool | MaxPool
Block = dict[str, tuple[Step, ...]]


def _halving(filters: int) -> Conv:
    return Conv(filters, 3, 3, stride=2, padding="VALID")


def _grid_35(pool_filters: int) -> Block:
    """Build the blocks on the 35×35 grid (figure 5 of the paper, with one 5×5 branch kept)."""
    return {
        "branch1x1": (Conv(64, 1, 1),),
        "branch5x5": (Conv(48, 1, 1), Conv(64, 5, 5)),
        "branch3x3dbl": (Conv(64, 1, 1), Conv(96, 3, 3), Conv(96, 3, 3)),
        "branch_pool": (AveragePool(), Conv(pool_filters, 1, 1)),
    }


def _grid_17(n: int) -> Block:
    """Build the blocks on the 17×17 grid: 7×7 convolutions factorised into 1×7 and 7×1 (figure 6)."""
    return {
        "branch1x1": (Conv(192, 1, 1),),
        "branch7x7": (Conv(n, 1, 1), Conv(n, 1, 7), Conv(192, 7, 1)),
        "branch7x7dbl": (Conv(n, 1, 1), Conv(n, 7, 1), Conv(n, 1, 7), Conv(n, 7, 1), Conv(192, 1, 7)),
        "branch_pool": (AveragePool(), Conv(192, 1, 1)),
    }


def _grid_8() -> Block:
    """Build the blocks on the 8×8 grid: 3×3 convolutions that fork into 1×3 and 3×1 (figure 7)."""
    fork = Fork((Conv(384, 1, 3), Conv(384, 3, 1)))
    return {
        "branch1x1": (Conv(320, 1, 1),),
        "branch3x3": (Conv(384, 1, 1), fork),
        "branch3x3dbl": (Conv(448, 1, 1), Conv(384, 3, 3), fork),
        "branch_pool": (AveragePool(), Conv(192, 1, 1)),
    }


ARCHITECTURE: dict[str, Block] = {
    "stem": {
        "conv": (
            Conv(32, 3, 3, stride=2, padding="VALID"),
            Conv(32, 3, 3, padding="VALID"),
            Conv(64, 3, 3),
            MaxPool(),
            Conv(80, 1, 1),
            Conv(192, 3, 3, padding="VALID"),
            MaxPool(),
        )
    },
    "mixed0": _grid_35(pool_filters=32),
    "mixed1": _grid_35(pool_filters=64),
    "mixed2": _grid_35(pool_filters=64),
    "mixed3": {
        "branch3x3": (_halving(384),),
        "branch3x3dbl": (Conv(64, 1, 1), Conv(96, 3, 3), _halving(96)),
        "branch_pool": (MaxPool(),),
    },
    "mixed4": _grid_17(128),
    "mixed5": _grid_17(160),
    "mixed6": _grid_17(160),
    "mixed7": _grid_17(192),
    "mixed8": {
        "branch3x3": (Conv(192, 1, 1), _halving(320)),
        "branch7x7x3": (Conv(192, 1, 1), Conv(192, 1, 7), Conv(192, 7, 1), _halving(192)),
        "branch_pool": (MaxPool(),),
    },
    "mixed9": _grid_8(),
    "mixed10": _grid_8(),
}
ENDPOINTS: tuple[str, ...] = tuple(name for name in ARCHITECTURE if name != "stem")


def blocks_until(final_endpoint: str) -> dict[str, Block]:
    """Return the part of `ARCHITECTURE` that ends with `final_endpoint`.

    Raises:
        CapjaxError: the endpoint does not exist.
    """
    if final_endpoint not in ENDPOINTS:
        raise CapjaxError(f"final_endpoint must be one of mixed0 … mixed10, got {final_endpoint!r}")
    names = list(ARCHITECTURE)
    return {name: ARCHITECTURE[name] for name in names[: names.index(final_endpoint) + 1]}


def min_image_size(final_endpoint: str) -> int:
    """Return the smallest height and width, in pixels, that leaves one position in the grid of `final_endpoint`."""
    size = 1
    for block in reversed(blocks_until(final_endpoint).values()):
        for step in reversed(next(iter(block.values()))):  # all branches of a block shrink the map alike
            if isinstance(step, MaxPool):
                size = 2 * size + 1
            elif isinstance(step, Conv) and step.padding == "VALID":
                size = (size - 1) * step.stride + step.height
    return size


def _named_steps(branch: str, steps: tuple[Step, ...]) -> Iterator[tuple[tuple[str, ...], Step]]:
    """Yield each step with the names of its convolutions.

    The only convolution of a branch has the branch's name; several are numbered, and the arms of a fork have letters
    too: `branch3x3_1`, `branch3x3_2a`, `branch3x3_2b`.
    """
    num_convs = sum(isinstance(step, Conv | Fork) for step in steps)
    position = 0
    for step in steps:
        position += isinstance(step, Conv | Fork)
        name = branch if num_convs == 1 else f"{branch}_{position}"
        if isinstance(step, Fork):
            yield tuple(name + letter for letter in "ab"), step
        else:
            yield (name,) if isinstance(step, Conv) else (), step


def conv_units() -> Iterator[tuple[str, str, Conv]]:
    """Yield (block, unit, convolution) for every convolution, in Keras' order of creation."""
    for block_name, block in ARCHITECTURE.items():
        for branch, steps in block.items():
            for names, step in _named_steps(branch, steps):
                convs = step.convs if isinstance(step, Fork) else (step,) if isinstance(step, Conv) else ()
                yield from ((block_name, name, conv) for name, conv in zip(names, convs, strict=True))


def scale_images(images: Num[Array, "N H W 3"], input_scaling: InputScaling = "symmetric") -> Float[Array, "N H W 3"]:
    """Scale RGB pixels 0…255 to what the first convolution expects.

    Args:
        images: [N, H, W, 3], any real dtype, values 0 to 255.
        input_scaling: "symmetric" for [-1, 1]; "imagenet" for zero mean and unit variance per channel over ImageNet.
    """
    images = images.astype(jnp.float32)
    if input_scaling == "symmetric":
        return images / 127.5 - 1.0
    mean = jnp.asarray(_IMAGENET_MEAN).reshape(1, 1, 1, 3)
    std = jnp.asarray(_IMAGENET_STD).reshape(1, 1, 1, 3)
    return (images / 255.0 - mean) / std


def _average_pool(x: Float[Array, "N H W C"], count_padding: bool) -> Float[Array, "N H W C"]:
    """Average 3×3 neighbourhoods; without `count_padding` the divisor at the border is the number of pixels inside.

    Sums of shifted slices: on CPUs several times faster than a window reduction, and no slower elsewhere.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    if count_padding:
        return total / 9
    rows, columns = (np.convolve(np.ones(size), np.ones(3))[1:-1] for size in (height, width))
    return total / jnp.asarray(np.outer(rows, columns)[None, :, :, None], x.dtype)


def _max_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Take the maximum of 3×3 neighbourhoods at stride 2, rows first, then columns (slices: see `_average_pool`)."""
    x = jnp.maximum(jnp.maximum(x[:, 0:-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(x[:, :, 0:-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


class ConvUnit(nn.Module):
    """Convolution, BatchNorm, ReLU; parameters `kernel` [height, width, in, out] and `norm`.

    `averaging` is for an average pool in front of a 1×1 convolution: both are linear and can change places, and behind
    the convolution there are a third to a tenth as many channels to average.
    """

    conv: Conv
    filters: int
    convention: Convention
    dtype: DTypeLike
    averaging: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N h w F"]:
        shape = (self.conv.height, self.conv.width, x.shape[-1], self.filters)
        # Weights come from a file or `random_encoder`, never from here: what takes no time to trace will do.
        kernel = jnp.asarray(self.param("kernel", nn.initializers.zeros, shape))
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=_BATCH_NORM_MOMENTUM[self.convention],
            epsilon=BATCH_NORM_EPSILON,
            use_scale=self.convention == "torchvision",
            dtype=self.dtype,
            name="norm",
        )
        if train or self.is_initializing():
            return nn.relu(norm(self._convolve(x, kernel)))
        # With stored statistics BatchNorm is a factor and a shift of each channel. A kernel smaller than the map of one
        # image takes the factor: a quarter less time on an H100, whose convolutions add a shift and do ReLU alone.
        factor = lax.rsqrt(norm.get_variable("batch_stats", "var") + BATCH_NORM_EPSILON)
        factor *= norm.get_variable("params", "scale", 1.0)
        shift = norm.get_variable("params", "bias") - norm.get_variable("batch_stats", "mean") * factor
        factor, shift = factor[None, None, None], shift[None, None, None].astype(self.dtype)
        if kernel.size < np.prod(x.shape[1:]):
            return nn.relu(self._convolve(x, kernel * factor) + shift)
        return nn.relu(self._convolve(x, kernel) * factor.astype(self.dtype) + shift)

    def _convolve(self, x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C F"]) -> Float[Array, "N h w F"]:
        kernel = kernel.astype(self.dtype)
        if kernel.shape[:2] == (1, 1):
            x = x @ kernel[0, 0]  # twice as fast as the same convolution on CPUs
            return _average_pool(x, count_padding=self.convention == "torchvision") if self.averaging else x
        return lax.conv_general_dilated(
            x, kernel, (self.conv.stride,) * 2, self.conv.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class InceptionBlock(nn.Module):
    """The parallel branches of one entry of `ARCHITECTURE`, concatenated."""

    block: Block
    depth_multiplier: float
    min_depth: int
    convention: Convention
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N h w F"]:
        def unit(conv: Conv, name: str, averaging: bool = False) -> ConvUnit:
            filters = max(int(conv.filters * self.depth_multiplier), self.min_depth)
            return ConvUnit(conv, filters, self.convention, self.dtype, averaging, name=name)

        outputs = []
        for branch, steps in self.block.items():
            y, averaging = x, False
            for names, step in _named_steps(branch, tuple(steps)):
                match step:
                    case Conv():
                        y = unit(step, names[0], averaging)(y, train)
                    case Fork():
                        arms = [unit(conv, name)(y, train) for conv, name in zip(step.convs, names, strict=True)]
                        y = jnp.concatenate(arms, axis=-1)
                    case AveragePool():
                        averaging = True  # done by the 1×1 convolution that comes next
                    case MaxPool():
                        y = _max_pool(y)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
    """Inception V3 up to `final_endpoint`, with an optional classification top (`classify`).

    Attributes:
        depth_multiplier: scales the filters of every convolution, as in TF-slim: max(int(d · multiplier), min_depth).
        min_depth: lower bound of that.
        final_endpoint: the last block to compute, mixed0 to mixed10.
        convention: whose network this is; see the table at the top of the file.
        input_scaling: how uint8 images are scaled; see `scale_images`.
        num_classes: outputs of the classification top, None for no top.
        grid_side: average the last grid down to this side, which must divide its own; 0 leaves it as it is.
        dtype: dtype of the computation; parameters and statistics stay float32.
    """

    depth_multiplier: float = 1.0
    min_depth: int = 16
    final_endpoint: str = "mixed10"
    convention: Convention = "keras"
    input_scaling: InputScaling = "symmetric"
    num_classes: int | None = None
    grid_side: int = 0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.convention not in _BATCH_NORM_MOMENTUM:
            raise CapjaxError(f"convention must be keras or torchvision, got {self.convention!r}")
        if self.input_scaling not in ("symmetric", "imagenet"):
            raise CapjaxError(f"input_scaling must be symmetric or imagenet, got {self.input_scaling!r}")
        self.blocks = [
            InceptionBlock(block, self.depth_multiplier, self.min_depth, self.convention, self.dtype, name=name)
            for name, block in blocks_until(self.final_endpoint).items()
        ]
        if self.num_classes is not None:
            self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)

    def __call__(self, images: Num[Array, "N H W 3"], train: bool = False) -> Features:
        """Encode images.

        Args:
            images: [N, H, W, 3], uint8 RGB (scaled here), or floats that `scale_images` has scaled already.
            train: normalise with the statistics of the batch and update the stored ones (mutable `batch_stats`);
                otherwise the stored statistics are used.

        Returns:
            pooled [N, F] and grid [N, P, F], P = h·w positions row by row; 64 positions and 2048 features for 299 px.

        Raises:
            CapjaxError: the images are too small for `final_endpoint`, or are neither uint8 nor float, or `grid_side`
                does not divide the grid.
        """
        if images.dtype == jnp.uint8:
            images = scale_images(images, self.input_scaling)
        elif not jnp.issubdtype(images.dtype, jnp.floating):
            raise CapjaxError(f"images must be uint8 pixels or scaled floats, got {images.dtype}")
        smallest = min_image_size(self.final_endpoint)
        if min(images.shape[1:3]) < smallest:
            height, width = images.shape[1:3]
            raise CapjaxError(f"{self.final_endpoint} needs images of {smallest} px or more, got {height}×{width}")
        x = images.astype(self.dtype)
        for block in self.blocks:
            x = block(x, train)
        if self.grid_side:
            x = _average(x, self.grid_side)
        grid = x.reshape(x.shape[0], -1, x.shape[-1])
        return Features(pooled=grid.mean(axis=1, dtype=jnp.float32).astype(grid.dtype), grid=grid)

    def classify(self, images: Num[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        """Return the logits of the classification top; `init(..., method="classify")` creates its parameters."""
        if self.num_classes is None:
            raise CapjaxError("this encoder has no classification top: build it with num_classes")
        return self.classifier(self(images).pooled)


def _average(x: Float[Array, "N h w f"], side: int) -> Float[Array, "N side side f"]:
    """Average equal squares of a grid, so that `side` of them lie beside each other."""
    num_images, height, width, size = x.shape
    if height % side or width % side:
        raise CapjaxError(f"expected a grid_side that divides the grid of {height} × {width}, got {side}")
    squares = x.reshape(num_images, side, height // side, side, width // side, size)
    return jnp.mean(squares, axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
