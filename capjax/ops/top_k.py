"""Exact top-k and arg max over a vocabulary, faster than those of `jax.lax` for the few best of thousands."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK_SIZE = 100


def block_top_k(
    values: Float[Array, "*rows V"], k: int, block_size: int = BLOCK_SIZE
) -> tuple[Float[Array, "*rows {k}"], Int[Array, "*rows {k}"]]:
    """Return the k largest values of the last axis and their indices: equal to `jax.lax.top_k`, ties included.

    The maximum of every block of the vocabulary comes first; only the k best blocks (of equal ones the earliest) are
    searched. Nothing is missed: were one of the k largest in another block, the maxima of the k chosen blocks would be
    k values that precede it. One vectorised pass over V replaces a partial sort of V.

    Args:
      values: any number of leading axes.
      k: how many, at most V.
      block_size: tokens per block.
    """
    size = values.shape[-1]
    num_leading = values.ndim - 1
    if size <= 2 * k * block_size:  # the chosen blocks would be most of the vocabulary
        return tuple(jax.lax.top_k(values, k))
    maxima = _block_maxima(values, block_size)
    blocks = jnp.sort(jax.lax.top_k(maxima, k)[1], axis=-1)  # in order of index, so that ties resolve by index
    within = jnp.arange(block_size).reshape((1,) * (num_leading + 1) + (block_size,))
    indices = (blocks[..., None] * block_size + within).reshape(*values.shape[:-1], k * block_size)
    candidates = jnp.take_along_axis(values, jnp.minimum(indices, size - 1), axis=-1)
    candidates = jnp.where(indices < size, candidates, -jnp.inf)
    best, positions = jax.lax.top_k(candidates, k)
    return best, jnp.take_along_axis(indices, positions, axis=-1)


def arg_max(values: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """Return the index of the largest value of the last axis: `jnp.argmax` of numbers (not of NaN), block by block.

    XLA does not vectorise a reduction to a value and its index on a CPU; there this takes a fifth of the time for 64 or
    256 rows of 8,769.

    Args:
      values: any number of leading axes.
    """
    size = values.shape[-1]
    if size <= 2 * BLOCK_SIZE:
        return jnp.argmax(values, axis=-1).astype(jnp.int32)
    block = jnp.argmax(_block_maxima(values, BLOCK_SIZE), axis=-1).astype(jnp.int32)
    indices = block[..., None] * BLOCK_SIZE + jnp.arange(BLOCK_SIZE).reshape((1,) * block.ndim + (-1,))
    # Behind the end of the vocabulary its last value is repeated, which is never the first of the largest.
    candidates = jnp.take_along_axis(values, jnp.minimum(indices, size - 1), axis=-1)
    return block * BLOCK_SIZE + jnp.argmax(candidates, axis=-1).astype(jnp.int32)


def _block_maxima(values: Float[Array, "*rows V"], block_size: int) -> Float[Array, "*rows blocks"]:
    """Return the largest value of every block, the last one possibly short."""
    num_leading = values.ndim - 1
    return jax.lax.reduce_window(
        values,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1,) * num_leading + (block_size,),
        window_strides=(1,) * num_leading + (block_size,),
        padding=[(0, 0)] * num_leading + [(0, -values.shape[-1] % block_size)],
    )
