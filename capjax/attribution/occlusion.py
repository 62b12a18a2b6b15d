"""Occlusion: a word has to do with a place if it gets less likely when that place is covered.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2. A window of 2 × 2 cells moves
over the picture cell by cell and covers it with the mean colour. The heat of a cell is the mean, over the windows that
cover it, of log p(word) with the whole picture less log p(word) with the covered one: in nats, below 0 where the place
spoke against the word. All words are read off the same 81 covered pictures.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from capjax.attribution.pictures import cells_of, check_sees, word_log_probs
from capjax.models import Captioner


def occlusion_heat(
    captioner: Captioner, variables: Any, images: Any, tokens: Int[Array, "1 T"]
) -> Float[Array, "L side side"]:
    """Return by how many nats covering each place makes each word less likely; images are uint8 [1, S, S, 3].

    Raises:
        CapjaxError: if the model has no encoder, or gets features.
    """
    check_sees(captioner, images)
    cells = np.pad(cells_of(images.shape[1]), ((1, 1), (0, 0)))
    windows = jnp.asarray(cells[:-1] | cells[1:])  # [SIDE + 1, S]; the outermost cover one cell of two
    mean_colour = jnp.round(jnp.mean(images.astype(jnp.float32), axis=(1, 2), keepdims=True)).astype(jnp.uint8)

    def of_one_height(rows: Array) -> Float[Array, "windows L"]:
        covered = rows[None, :, None, None] & windows[:, None, :, None]
        return word_log_probs(captioner, variables, jnp.where(covered, mean_colour, images), tokens)

    log_probs = jax.lax.map(of_one_height, windows)
    heat = word_log_probs(captioner, variables, images, tokens)[None] - log_probs
    heat = (heat[:-1] + heat[1:]) / 2
    return jnp.moveaxis((heat[:, :-1] + heat[:, 1:]) / 2, -1, 0)
