"""What the methods that change the picture share: its cells, its absence, and how likely a caption's words are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from capjax.errors import CapjaxError
from capjax.models import Captioner

SIDE = 8
"""Cells of the heat along each side, as many as the last grid of Inception V3 has."""


def check_sees(captioner: Captioner, inputs: Any) -> None:
    """Check that a model looks at pixels.

    Raises:
        CapjaxError: if it is given features, or has no encoder.
    """
    if captioner.encoder is None or not hasattr(inputs, "ndim"):
        raise CapjaxError(
            "expected a model with an encoder and an image to change parts of, got features made elsewhere; where a "
            "model looked can be told of attention alone then"
        )


def word_log_probs(
    captioner: Captioner, variables: Any, images: Shaped[Array, "N S S 3"], tokens: Int[Array, "1 T"]
) -> Float[Array, "N L"]:
    """Return log p(word | image, words before) of one caption under each of N images."""
    inputs = jnp.broadcast_to(tokens[:, :-1], (images.shape[0], tokens.shape[1] - 1))
    log_probs = jax.nn.log_softmax(captioner.apply(variables, images, inputs).logits)
    return log_probs[:, jnp.arange(inputs.shape[1]), tokens[0, 1:]]


def cells_of(size: int) -> Bool[np.ndarray, "cells {size}"]:
    """Return which of `size` pixels in a row lie in each of the `SIDE` cells."""
    return np.arange(size) * SIDE // size == np.arange(SIDE)[:, None]
