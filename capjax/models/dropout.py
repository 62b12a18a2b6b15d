"""Dropout that belongs to the caption, not to its place on a device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capjax.types import RowKeys


def dropout(x: Float[Array, "B *rest"], rate: float, keys: RowKeys | None, site: int) -> Float[Array, "B *rest"]:
    """Set a random share of each row to zero and scale up what stays (Srivastava et al. 2014, inverted).

    What is dropped of a row follows from the row's key alone: a batch gives the same result on one device or many,
    whole or in microbatches.

    Args:
        x: any activations of the captions.
        rate: share that is dropped, in [0, 1).
        keys: of the captions; None, in evaluation, drops nothing.
        site: a number of its own for each place in a model, so that they drop independently.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0)
