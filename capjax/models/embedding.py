"""The vectors of words: a table that is read by id, and a gradient that neither loses counts nor waits in line.

The gradient of a table is a sum over the positions at which each word stood, and a few words ("a", padding, START)
stand at a good part of all. Added up one by one, in bfloat16 such a sum stops growing at some hundred terms, and on a
GPU the additions to one row wait for each other: three quarters of a training step of 4,096 captions on an H100. Here
sums are float32, and but on a CPU, which adds one by one anyway, they are a product with one-hot vectors.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# One-hot vectors of a vocabulary of 10,000 take 80 MB for so many rows. Of a batch that many devices share a device has
# few, and every product reads and writes the whole table: so many products at most.
_ROWS_AT_ONCE, _MOST_PRODUCTS = 4096, 8


class Embed(nn.Module):
    """The table of a vocabulary's vectors, with the parameter and the initial values of `flax.linen.Embed`.

    Attributes:
        vocab_size: V.
        size: E.
        dtype: of the vectors; the table is float32.
        embedding_init: of the table.
    """

    vocab_size: int
    size: int
    dtype: DTypeLike = jnp.float32
    embedding_init: Callable[..., Array] = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.vocab_size, self.size))

    def __call__(self, ids: Int[Array, "*shape"]) -> Float[Array, "*shape E"]:
        """Return the vectors of words."""
        return look_up(self.embedding, ids, self.dtype)


def look_up(table: Float[Array, "V E"], ids: Int[Array, "*shape"], dtype: DTypeLike) -> Float[Array, "*shape E"]:
    """Return the rows of a table, its gradient summed in float32.

    What is summed is rounded on accelerators as in all their products of float32, to TensorFloat-32 on GPUs and to
    bfloat16 on TPUs, unless `jax_default_matmul_precision` says otherwise.

    Args:
        table: a row for each id.
        ids: of any shape.
        dtype: of what is returned.
    """
    return _look_up(table, ids, dtype, table.shape[0])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _look_up(table, ids, dtype, num_rows):
    return jnp.take(table, ids, axis=0).astype(dtype)


def _forward(table, ids, dtype, num_rows):
    return _look_up(table, ids, dtype, num_rows), ids


def _backward(dtype, num_rows, ids, cotangent):
    gradient = jax.lax.platform_dependent(
        ids, cotangent, cpu=partial(sum_one_by_one, num_rows), default=partial(sum_by_products, num_rows)
    )
    return gradient, None


_look_up.defvjp(_forward, _backward)


def sum_one_by_one(
    num_rows: int, ids: Int[Array, "*shape"], cotangent: Float[Array, "*shape E"]
) -> Float[Array, "{num_rows} E"]:
    """Add up what belongs to each id."""
    zeros = jnp.zeros((num_rows, cotangent.shape[-1]), jnp.float32)
    return zeros.at[ids].add(cotangent.astype(jnp.float32))


def sum_by_products(
    num_rows: int, ids: Int[Array, "*shape"], cotangent: Float[Array, "*shape E"]
) -> Float[Array, "{num_rows} E"]:
    """Add up what belongs to each id, as products of one-hot vectors, some thousand at a time.

    They are cut along the last axis of `ids`, the words of captions, since the first may lie on several devices.
    """
    length = ids.shape[-1]
    at_once = min(length, max(-(-length // _MOST_PRODUCTS), _ROWS_AT_ONCE * length // ids.size))
    num_groups = -(-length // at_once)

    def grouped(x: Array, axis: int, fill: int) -> Array:
        x = jnp.moveaxis(x, axis, 0)
        x = jnp.pad(x, [(0, num_groups * at_once - length)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return x.reshape(num_groups, at_once, *x.shape[1:])

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        part, values = group
        one_hot = jax.nn.one_hot(part, num_rows, dtype=values.dtype)  # zeros for the id that fills up
        axes = tuple(range(part.ndim))
        return total + jnp.tensordot(one_hot, values, (axes, axes), preferred_element_type=jnp.float32), None

    zeros = jnp.zeros((num_rows, cotangent.shape[-1]), jnp.float32)
    groups = grouped(ids, -1, num_rows), grouped(cotangent, -2, 0)
    return jax.lax.scan(add, zeros, groups)[0]
