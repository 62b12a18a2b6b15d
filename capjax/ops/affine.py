"""A dense layer's product and bias, for logits: as many numbers as nothing else in a captioner has."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FEW_ROWS = 16  # below, to copy the kernel, with the bias beside it, costs more than it saves


def affine(x: Float[Array, "N M"], kernel: Float[Array, "M V"], bias: Float[Array, " V"]) -> Float[Array, "N V"]:
    """Return `x @ kernel + bias` in float32; the product is computed in the dtype of `x`."""
    num_rows = x.shape[0]  # no number in a program that is exported for batches of any size
    if x.dtype != jnp.float32 or not isinstance(num_rows, int) or num_rows < _FEW_ROWS:
        return _product_and_sum(x, kernel, bias)
    return jax.lax.platform_dependent(x, kernel, bias, cpu=_product_alone, default=_product_and_sum)


def _product_and_sum(x: Array, kernel: Array, bias: Array) -> Array:
    return (x @ kernel.astype(x.dtype)).astype(jnp.float32) + bias[None]


def _product_alone(x: Array, kernel: Array, bias: Array) -> Array:
    """Take the bias as one more row of the kernel.

    XLA's products end in memory on a CPU, where a sum behind them, and one in the gradient, are passes of their own: a
    tenth of a training step, a sixth of a greedy search. Accelerators add as they write, but want sizes of tiles.
    """
    ones = jnp.ones((x.shape[0], 1), x.dtype)
    return jnp.concatenate([x, ones], axis=1) @ jnp.concatenate([kernel, bias[None]])
