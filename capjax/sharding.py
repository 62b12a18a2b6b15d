"""Where arrays live: one mesh axis of devices, batches split over it, parameters whole on each.

The same functions serve one CPU, eight GPUs and a TPU pod: every process feeds its own part of each batch and
XLA inserts the collectives.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capjax.errors import CapjaxError

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """Line up all devices of all processes on one data-parallel axis."""
    return Mesh(np.asarray(jax.devices()), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


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


def gather_to_host(array: jax.Array) -> np.ndarray:
    """Fetch a global array to the host of every process, in the order of its leading axis."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_divides(batch_size: int, name: str) -> None:
    """Refuse a global batch that cannot be split evenly over the devices.

    Raises:
        CapjaxError: if `batch_size` is not a positive multiple of the device count.
    """
    num_devices = jax.device_count()
    if batch_size < 1 or batch_size % num_devices:
        raise CapjaxError(
            f"{name} must be a positive multiple of the {num_devices} devices, got {batch_size}; "
            f"try {max(1, round(batch_size / num_devices)) * num_devices}"
        )


def gather_rows(local: np.ndarray) -> np.ndarray:
    """Join the rows that each process holds, in process order, on all processes; any dtype survives."""
    if jax.process_count() == 1:
        return local
    # As bytes: JAX would cut 64-bit integers to 32.
    rows = np.ascontiguousarray(local).view(np.uint8).reshape(len(local), -1)
    joined = np.ascontiguousarray(multihost_utils.process_allgather(rows, tiled=True))
    return joined.view(local.dtype).reshape(-1, *local.shape[1:])
