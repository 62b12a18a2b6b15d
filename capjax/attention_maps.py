"""Where a model looks while it writes: attention by word, computed again from a finished caption.

A search keeps no maps: they would have to follow every beam, and nearly nobody asks for them. One pass of teacher
forcing over the caption gives the very same ones.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from capjax.captioning import LoadedModel
from capjax.data.input_pipeline import pad_captions
from capjax.errors import CapjaxError
from capjax.models import Captioner


def attention_maps(model: LoadedModel, inputs: Any, captions: Sequence[str]) -> list[Float[np.ndarray, "_ side side"]]:
    """Compute where a model looked as it wrote captions.

    Args:
        model: whose decoder attends to a grid.
        inputs: images [N, S, S, 3] or `Features`, one for each caption.
        captions: what it wrote of them.

    Returns:
        For each caption one map per word, and one for END, over the square grid; each sums to 1.

    Raises:
        CapjaxError: if the decoder has no attention, or the grid is not square.
    """
    encoded = [model.vocabulary.encode(caption) for caption in captions]
    tokens = pad_captions(encoded, max(map(len, encoded)))["tokens"]
    program = jax.jit(partial(_attention, model.captioner))
    attention = np.asarray(program(model.variables, inputs, jnp.asarray(tokens[:, :-1])))
    side = round(attention.shape[-1] ** 0.5)
    if side**2 != attention.shape[-1]:
        raise CapjaxError(
            f"expected a square grid to draw attention on, the features have {attention.shape[-1]} places"
        )
    return [maps[: len(ids) - 1].reshape(-1, side, side) for maps, ids in zip(attention, encoded, strict=True)]


def _attention(captioner: Captioner, variables: Any, inputs: Any, tokens: Int[Array, "N L"]) -> Float[Array, "N L P"]:
    extras = captioner.apply(variables, inputs, tokens).extras
    if "attention" not in extras:
        raise CapjaxError(
            f"expected a model that attends to a grid, {type(captioner.decoder).__name__} looks at images once, whole"
        )
    return extras["attention"]
