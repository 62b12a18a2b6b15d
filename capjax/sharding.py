"""Where arrays live: a mesh of devices, batches split over its axis `data`, vocabularies over its axis `model`.

The same functions serve one CPU, eight GPUs and a TPU pod: every process feeds its own part of each batch and
XLA inserts the collectives.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capjax.errors import CapjaxError
from capjax.host.waiting import DEVICES, waiting_for

T = TypeVar("T")

DATA_AXIS, MODEL_AXIS = "data", "model"

# The arrays that are split over the model axis, by the end of their path in a tree of parameters or of an optimiser's
# moments; all others are whole on every device. These two grow with the vocabulary and are read once a step: a row of
# the one by word, the other by the loss, which adds up over the axis what each part of the vocabulary contributes. A
# recurrent kernel does not pay: it would ask for a collective at every word.
SPLIT = {
    ("decoder", "embedding", "embedding"): PartitionSpec(MODEL_AXIS),
    ("decoder", "logits", "kernel"): PartitionSpec(None, MODEL_AXIS),
    ("decoder", "logits", "bias"): PartitionSpec(MODEL_AXIS),
}


def make_mesh(devices: Sequence[jax.Device] | None = None, model_parallel: int = 1) -> Mesh:
    """Line devices up on the data axis, every `model_parallel` neighbours as one row of it.

    Args:
        devices: all of all processes unless given.
        model_parallel: size of the model axis.

    Raises:
        CapjaxError: if a process's devices cannot be grouped so, or one has more devices than another.
    """
    devices = jax.devices() if devices is None else devices
    by_process = Counter(device.process_index for device in devices)
    num_local, *others = by_process.values()  # a row belongs to one process, which feeds it
    if any(number != num_local for number in others):
        told = ", ".join(f"process {process} has {number}" for process, number in sorted(by_process.items()))
        raise CapjaxError(f"expected as many devices in every process of the run, {told}; is one of them broken?")
    if num_local % model_parallel:
        raise CapjaxError(
            f"expected mesh.model_parallel that divides the {num_local} devices of a process, got {model_parallel}"
        )
    return Mesh(np.asarray(devices).reshape(-1, model_parallel), (DATA_AXIS, MODEL_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return the sharding of every array of a state or of variables, as `SPLIT` says."""
    if mesh.shape[MODEL_AXIS] == 1:
        return jax.tree.map(lambda _: replicated(mesh), state)

    def sharding_of(path: tuple[Any, ...], x: Any) -> NamedSharding:
        names = tuple(getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
        for end, spec in SPLIT.items():
            axis = len(spec) - 1  # the one that is split; moments of another shape (Adafactor's) may not have it
            if names[-len(end) :] == end and axis < x.ndim and x.shape[axis] % mesh.shape[MODEL_AXIS] == 0:
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def keep_sharded(state: Any, mesh: Mesh) -> Any:
    """Make XLA lay a state that a compiled step returns out as `state_shardings` does."""
    return with_sharding_constraint(state, state_shardings(state, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Turn this process's part of a batch into global device arrays.

    Args:
        batch: pytree of NumPy arrays, each [B / processes, ...].
        mesh: the mesh of `make_mesh`.

    Returns:
        The same pytree of global arrays [B, ...], split over the mesh.
    """
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a pytree, equal on all processes, whole on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def shard_state(state: Any, mesh: Mesh) -> Any:
    """Put a state, equal on all processes, on the devices as `state_shardings` says."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, state, state_shardings(state, mesh))


def fetch_state(state: Any, mesh: Mesh) -> Any:
    """Fetch a state or variables whole to the host of every process; to be called on all of them."""
    if mesh.shape[MODEL_AXIS] > 1 and jax.process_count() > 1:
        state = _gather(mesh)(state)
    return jax.tree.map(lambda x: np.asarray(x if x.is_fully_addressable else x.addressable_data(0)), state)


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    """Make the program that copies what is split to all devices, once."""
    return jax.jit(lambda state: state, out_shardings=replicated(mesh))


def check_divides(batch_size: int, name: str, mesh: Mesh) -> None:
    """Refuse a global batch that cannot be split evenly over the data axis.

    Raises:
        CapjaxError: if `batch_size` is not a positive multiple of its size.
    """
    num_devices = mesh.shape[DATA_AXIS]
    if batch_size < 1 or batch_size % num_devices:
        what = "devices" if mesh.shape[MODEL_AXIS] == 1 else "rows of devices"
        raise CapjaxError(
            f"{name} must be a positive multiple of the {num_devices} {what}, got {batch_size}; "
            f"try {max(1, round(batch_size / num_devices)) * num_devices}"
        )


def check_vocabulary(size: int, mesh: Mesh, is_given: bool) -> None:
    """Refuse a vocabulary that cannot be split evenly over the model axis.

    Args:
        size: V.
        mesh: the devices.
        is_given: it is that of another model, and cannot be filled up.

    Raises:
        CapjaxError: with what to set.
    """
    parts = mesh.shape[MODEL_AXIS]
    if size % parts:
        raise CapjaxError(
            f"expected a vocabulary that divides over mesh.model_parallel = {parts} devices, got {size:,} entries; "
            + ("set one that divides it" if is_given else f"fill it up with --config.vocabulary.multiple_of={parts}")
        )


def one_ahead(dispatched: Iterable[T]) -> Iterator[T]:
    """Yield results that devices compute, each once the next is on its way: they do not wait for the host meanwhile."""
    results = iter(dispatched)
    for previous in results:
        for following in results:
            yield previous
            previous = following
        yield previous


def local_rows(array: jax.Array) -> np.ndarray:
    """Fetch this process's rows of a global array that is split over the data axis, in their order."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    with waiting_for(DEVICES):
        return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]))  # all on their way at once


def gather_json(values: Any) -> list[Any]:
    """Return JSON values of all processes, in process order, on each of them."""
    content = np.frombuffer(json.dumps(values).encode(), np.uint8)
    (lengths,) = gather_rows([np.asarray([len(content)])])
    (rows,) = gather_rows([np.pad(content, (0, lengths.max() - len(content)))[None]])
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def gather_rows(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Join the rows of all processes, in process order, on each of them, in one exchange; any dtypes survive."""
    if jax.process_count() == 1:
        return list(arrays)
    # Side by side as bytes: JAX would cut 64-bit integers to 32.
    parts = [np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1) for x in arrays]
    with waiting_for(DEVICES):
        joined = multihost_utils.process_allgather(np.concatenate(parts, axis=1), tiled=True)
    ends = np.cumsum([part.shape[1] for part in parts])
    return [
        np.ascontiguousarray(columns).view(x.dtype).reshape(-1, *x.shape[1:])
        for columns, x in zip(np.split(joined, ends[:-1], axis=1), arrays, strict=True)
    ]
