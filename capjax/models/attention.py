"""Additive attention over the grid of an image (Bahdanau et al. 2015), as captioners use it.

The grid and its keys belong to the image. Queries belong to captions, some of which share an image: they come as
[N·k, D] and meet the grid as [N, k, …], so that nothing of the image is repeated for beams or captions.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from capjax.errors import CapjaxError
from capjax.models.dropout import dropout
from capjax.types import Features, RowKeys


class Memory(NamedTuple):
    """An image as attention sees it: what it mixes, and what it compares with the query."""

    values: Float[Array, "N P F"]
    keys: Float[Array, "N P A"]


class AdditiveAttention(nn.Module):
    """Weighs grid positions by wᵀ tanh(W_a a_i + W_h h), softmax over i.

    Attributes:
        attention_size: A, units of the comparison.
        dtype: of the computation; the softmax runs in float32.
    """

    attention_size: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.key = nn.Dense(self.attention_size, dtype=self.dtype)
        self.query = nn.Dense(self.attention_size, use_bias=False, dtype=self.dtype)
        self.score = self.param("score", nn.initializers.lecun_normal(), (self.attention_size, 1))

    def memory(self, grid: Float[Array, "N P F"]) -> Memory:
        """Compute once per image what attention needs of it."""
        return Memory(grid, self.key(grid))

    def __call__(self, memory: Memory, hidden: Float[Array, "B D"]) -> tuple[Float[Array, "B F"], Float[Array, "B P"]]:
        """Look at the images with one query per caption, B a multiple of N.

        Returns:
            The weighted means of the grids, and the weights, float32.
        """
        values, keys = memory
        query = self.query(hidden).reshape(keys.shape[0], -1, 1, self.attention_size)
        # A sum of products, not a matrix product: XLA fuses it with tanh, and [N, k, P, A] never exists.
        compared = jnp.tanh(keys[:, None] + query) * self.score[:, 0].astype(self.dtype).reshape(1, 1, 1, -1)
        weights = jax.nn.softmax(jnp.sum(compared.astype(jnp.float32), axis=-1), axis=-1)
        mixed = jnp.einsum("nkp,npf->nkf", weights.astype(self.dtype), values)
        return mixed.reshape(-1, values.shape[-1]), weights.reshape(-1, values.shape[1])


def drop_grid(grid: Float[Array, "N P D"], rate: float, keys: RowKeys | None, num_captions: int) -> Array:
    """Drop units of embedded grids in training, alike for the captions of an image: by the key of its first."""
    keys = None if keys is None else keys[:: num_captions // grid.shape[0]]
    return dropout(grid, rate, keys, site=2)


def grid_of(features: Features, dtype: DTypeLike) -> Float[Array, "N P F"]:
    """Take the grid of some images.

    Raises:
        CapjaxError: if the features have none.
    """
    if features.grid is None:
        raise CapjaxError("this decoder attends to a grid, the features have none; set encoder.grid = True")
    return features.grid.astype(dtype)
