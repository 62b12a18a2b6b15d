"""Sampling: draw the next token from the model's distribution, whole or reshaped by temperature, top-k and top-p."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.logits_processors import LogitsProcessor
from capjax.decoding.rollout import batch_size, rollout
from capjax.types import Carry, DecodeStep, SpecialIds


def image_keys(seed: int, image_ids: Sequence[int] | np.ndarray) -> Key[Array, " B"]:
    """Return one random key per image, a function of the seed and the image's id alone (its lowest 32 bits).

    A caption sampled with it does not depend on which images share the batch.
    """
    folds = np.asarray(image_ids, np.int64).astype(np.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.asarray(folds))


def sample(
    decode_step: DecodeStep,
    carry: Carry,
    special_ids: SpecialIds,
    keys: Key[Array, " B"],
    *,
    max_length: int = 20,
    num_captions: int = 1,
    processors: Sequence[LogitsProcessor] = (),
) -> Hypotheses:
    """Draw `num_captions` captions per image independently.

    Args:
      decode_step: the model.
      carry: its initial state, leaves with leading axis B.
      special_ids: ids of PAD, UNK, START and END.
      keys: one random key per image, see `image_keys`. Token t of caption n comes from fold_in(fold_in(key, n), t).
      max_length: L, tokens per sentence at most (END, if it comes, included).
      num_captions: K, captions per image.
      processors: constraints first, then what reshapes the distribution; the token is drawn from the softmax of the
        result, and its log-probability is that of the model at temperature 1.

    Returns:
      Hypotheses, the most probable caption of each image first.
    """
    size = batch_size(carry)
    row_keys = jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(num_captions)))(keys)
    row_keys = row_keys.reshape(size * num_captions)

    def draw_token(step: Int[Array, ""], logits: Float[Array, "N V"]) -> Int[Array, " N"]:
        draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row)  # noqa: E731
        return jax.vmap(draw)(row_keys, logits).astype(jnp.int32)

    rows = rollout(
        decode_step,
        jax.tree.map(lambda leaf: jnp.repeat(leaf, num_captions, axis=0), carry),
        special_ids,
        max_length=max_length,
        processors=processors,
        choose_token=draw_token,
    )
    captions = jax.tree.map(lambda leaf: leaf.reshape(size, num_captions, *leaf.shape[2:]), rows)
    best_first = jnp.argsort(captions.log_probs, axis=-1, descending=True)
    return jax.tree.map(lambda leaf: jax.vmap(lambda row, order: row[order])(leaf, best_first), captions)
