"""The file an encoder lives in: one `.safetensors` of flat tensor names, with the network they are for in its metadata.

Tensor names are the paths of the Flax variables: `params/mixed0/branch5x5_1/kernel`, `batch_stats/…/norm/mean`. The
metadata key `capjax_encoder` holds JSON: the fields of `EncoderConfig`, `format_version` and `sha256`, a digest of the
names, dtypes, shapes and values of the tensors. Converters write these files; training, feature extraction and model
directories read them.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.typing import DTypeLike

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.models import inception_v3

FORMAT_VERSION = 1
METADATA_KEY = "capjax_encoder"
_MAX_SIZE = 1_000_000
_MAX_SIDE = 4096
_MAX_DEPTH_MULTIPLIER = 100
_MAX_LISTED = 8  # of shapes that do not fit

Variables = Mapping[str, Any]
"""Flax variables: {"params": …, "batch_stats": …}."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Which Inception V3 the weights are for: the fields of `InceptionV3`, the image size, the weights' origin."""

    convention: inception_v3.Convention = "keras"
    depth_multiplier: float = 1.0
    min_depth: int = 16
    final_endpoint: str = "mixed10"
    input_scaling: inception_v3.InputScaling = "symmetric"
    num_classes: int | None = None
    grid_side: int = 0
    image_size: int = 299
    source: str = ""

    def build(self, dtype: DTypeLike = jnp.float32) -> inception_v3.InceptionV3:
        """Build the module, computing in `dtype`."""
        fields = dataclasses.asdict(self)
        del fields["image_size"], fields["source"]
        return inception_v3.InceptionV3(**fields, dtype=dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """An encoder in memory: the network, and its variables as float32 values."""

    config: EncoderConfig
    variables: Variables

    @functools.cached_property
    def sha256(self) -> str:
        """What identifies the weights: the same whether they came from an encoder file or with a trained captioner."""
        return tensors_sha256(flatten(self.variables))


def variable_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every variable of the network, by flat name, without computing anything."""
    return dict(_variable_shapes(dataclasses.replace(config, image_size=0, source="", grid_side=0)))


@functools.lru_cache  # tracing takes a second
def _variable_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    module = config.build()
    size = inception_v3.min_image_size(config.final_endpoint)
    method = "__call__" if config.num_classes is None else "classify"
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, 3), jnp.uint8), method=method)
    )
    return {name: leaf.shape for name, leaf in flatten(shapes).items()}


def flatten(variables: Variables) -> dict[str, Any]:
    """Flatten nested variables to {"params/stem/conv_1/kernel": …}, sorted by name."""
    return dict(sorted(traverse_util.flatten_dict(dict(variables), sep="/").items()))


def unflatten(tensors: Mapping[str, Any]) -> Variables:
    """Undo `flatten`."""
    return traverse_util.unflatten_dict(dict(tensors), sep="/")


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Compare shapes by name.

    Raises:
        CapjaxError: names are missing or left over, or shapes differ; the message lists the first of them.
    """
    problems = [f"missing {name} {tuple(expected[name])}" for name in expected if name not in found]
    problems += [f"unexpected {name} {tuple(found[name])}" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if problems:
        listed = "; ".join(problems[:_MAX_LISTED])
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise CapjaxError(f"{what} does not fit the network (differences: {len(problems)}): {listed}{more}")


def save_encoder(
    path: str | os.PathLike, config: EncoderConfig, variables: Variables, storage_dtype: DTypeLike = np.float32
) -> str:
    """Write an encoder file, atomically.

    Args:
        path: target, usually `*.safetensors`.
        config: the network that the variables belong to.
        variables: {"params", "batch_stats"}, nested as Flax has them.
        storage_dtype: float16 halves the file; tensors come back as float32 either way.

    Returns:
        The SHA-256 of the tensors as they are stored; that of `LoadedEncoder` is of their float32 values.

    Raises:
        CapjaxError: the variables do not fit the network, or the file cannot be written.
    """
    path = pathlib.Path(path)
    tensors = {name: np.asarray(leaf).astype(storage_dtype) for name, leaf in flatten(variables).items()}
    check_shapes({name: t.shape for name, t in tensors.items()}, variable_shapes(config), "the encoder to save")
    sha256 = tensors_sha256(tensors)
    header = {"format_version": FORMAT_VERSION, **dataclasses.asdict(config), "sha256": sha256}
    write_atomically(path, safetensors.numpy.save(tensors, metadata={METADATA_KEY: json.dumps(header)}))
    return sha256


def load_encoder(path: str | os.PathLike) -> LoadedEncoder:
    """Read an encoder file; variables are float32 NumPy arrays.

    Raises:
        CapjaxError: the file is missing, damaged, of another program or version, or does not fit its network.
    """
    path = pathlib.Path(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError, AttributeError, TypeError) as error:
        # The last two come of numbers of a kind that NumPy does not have.
        hint = "; weights of Keras or torchvision need `capjax weights convert` first" if path.is_file() else ""
        raise CapjaxError(f"cannot read the encoder {path}: {error}{hint}") from error
    config, stored_sha256 = _parse_header(path, metadata)
    check_shapes({name: t.shape for name, t in tensors.items()}, variable_shapes(config), str(path))
    sha256 = tensors_sha256(tensors)
    if sha256 != stored_sha256:
        raise CapjaxError(f"{path} is damaged: its tensors hash to {sha256}, its header says {stored_sha256}")
    return LoadedEncoder(config, unflatten({name: tensor.astype(np.float32) for name, tensor in tensors.items()}))


def cut_encoder(encoder: LoadedEncoder, endpoint: str) -> LoadedEncoder:
    """Leave away what comes behind a block, the classifier included.

    Args:
        encoder: the whole network.
        endpoint: name of the block whose output becomes the features.

    Raises:
        CapjaxError: if the network has no such block.
    """
    blocks = inception_v3.ENDPOINTS[: inception_v3.ENDPOINTS.index(encoder.config.final_endpoint) + 1]
    if endpoint not in blocks:
        raise CapjaxError(f"expected encoder.endpoint out of {', '.join(blocks)} for these weights, got {endpoint!r}")
    config = dataclasses.replace(encoder.config, final_endpoint=endpoint, num_classes=None)
    tensors = flatten(encoder.variables)
    return LoadedEncoder(config, unflatten({name: tensors[name] for name in variable_shapes(config)}))


def pool_grid(encoder: LoadedEncoder, side: int) -> LoadedEncoder:
    """Let an encoder average its grid down to `side` × `side` positions; its weights stay.

    Raises:
        CapjaxError: if that does not divide the grid.
    """
    config = dataclasses.replace(encoder.config, grid_side=side)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    jax.eval_shape(config.build().apply, encoder.variables, image)
    return dataclasses.replace(encoder, config=config)


def _parse_header(path: pathlib.Path, metadata: Mapping[str, str]) -> tuple[EncoderConfig, str]:
    if METADATA_KEY not in metadata:
        raise CapjaxError(f"{path} is no capjax encoder file; convert other weights with `capjax weights convert`")
    try:
        header = json.loads(metadata[METADATA_KEY])
        version, sha256 = header.pop("format_version"), header.pop("sha256")
        if version != FORMAT_VERSION:
            raise CapjaxError(f"{path} has encoder format {version}, this capjax reads format {FORMAT_VERSION}")
        return config_from(header), sha256
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CapjaxError(f"{path} has a damaged header ({error}); get the file again") from error


def config_from(fields: Mapping[str, Any]) -> EncoderConfig:
    """Rebuild a configuration that was stored; which names of conventions and endpoints exist, the network says.

    Raises:
        TypeError: there is no such field.
        ValueError: a field is of another type or size than any network has.
    """
    config = EncoderConfig(**fields)
    texts = (config.convention, config.final_endpoint, config.input_scaling, config.source)
    sizes = (config.min_depth, 1 if config.num_classes is None else config.num_classes)
    if not all(isinstance(value, str) for value in texts):
        raise ValueError(f"expected texts, got {texts}")
    if not all(type(value) is int and 1 <= value <= _MAX_SIZE for value in sizes):
        raise ValueError(f"expected min_depth and num_classes from 1 to {_MAX_SIZE:,}, got {sizes}")
    for name, least in {"image_size": 1, "grid_side": 0}.items():
        if type(side := getattr(config, name)) is not int or not least <= side <= _MAX_SIDE:
            raise ValueError(f"expected {name} from {least} to {_MAX_SIDE:,}, got {side!r}")
    if type(config.depth_multiplier) not in (int, float) or not 0 < config.depth_multiplier <= _MAX_DEPTH_MULTIPLIER:
        raise ValueError(
            f"expected a depth_multiplier above 0, up to {_MAX_DEPTH_MULTIPLIER}, got {config.depth_multiplier}"
        )
    return config
