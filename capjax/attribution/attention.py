"""Attention: the weights by which a decoder mixed the places of the grid, computed again from a finished caption.

A search keeps no maps: they would have to follow every beam, and nearly nobody asks for them. One pass of teacher
forcing over the caption gives the very same ones.
"""

from typing import Any

from jaxtyping import Array, Float, Int

from capjax.errors import CapjaxError
from capjax.models import Captioner


def attention_heat(
    captioner: Captioner, variables: Any, inputs: Any, tokens: Int[Array, "1 T"]
) -> Float[Array, "L side side"]:
    """Return the attention of every word over the square grid; each map sums to 1. Features will do as inputs.

    Raises:
        CapjaxError: if the decoder has no attention, or the grid is not square.
    """
    extras = captioner.apply(variables, inputs, tokens[:, :-1]).extras
    if "attention" not in extras:
        raise CapjaxError(
            f"expected a model that attends to a grid, {type(captioner.decoder).__name__} looks at images once, whole; "
            "occlusion and integrated_gradients tell where"
        )
    (attention,) = extras["attention"]
    side = round(attention.shape[-1] ** 0.5)
    if side**2 != attention.shape[-1]:
        raise CapjaxError(
            f"expected a square grid to draw attention on, the features have {attention.shape[-1]} places"
        )
    return attention.reshape(-1, side, side)
