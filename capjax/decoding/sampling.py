"""Sampling: draw the next token from the model's distribution, whole or reshaped by temperature, top-k and top-p."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.logits_processors import LogitsProcessor
from capjax.decoding.rollout import batch_size, rollout
from capjax.types import Carry, DecodeStep, SpecialIds


def image_keys(seed: int, image_ids: Sequence[int] | Int[np.ndarray, " B"]) -> Key[Array, " B"]:
    """Return one random key per image, a function of the seed and the image's id alone (its lowest 32 bits).

    A caption sampled with it does not depend on which images share the batch.
    """
    return keys_of_images(seed, jnp.asarray(np.asarray(image_ids, np.int64).astype(np.uint32)))


def keys_of_images(seed: int | UInt32[Array, ""], ids: UInt32[Array, " B"]) -> Key[Array, " B"]:
    """Return the keys of `image_keys` for the lowest 32 bits of images' ids, inside a compiled program as well."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), ids)


def draw_tokens(keys: Key[Array, " N"], logits: Float[Array, "N V"], block_size: int = 100) -> Int[Array, " N"]:
    """Draw a token of every row from softmax(logits).

    By inversion in two stages, first a block of the vocabulary, then a token within it, with one uniform number each:
    the Gumbel trick of `jax.random.categorical` needs V of them and takes ten times as long.
    """
    num_rows, vocabulary_size = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -vocabulary_size % block_size))).reshape(num_rows, -1, block_size)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    block = _invert(jnp.sum(weights, axis=-1), uniform[:, 0])
    within = _invert(jax.vmap(lambda row, index: row[index])(weights, block), uniform[:, 1])
    return block * block_size + within


def _invert(weights: Float[Array, "N M"], uniform: Float[Array, " N"]) -> Int[Array, " N"]:
    """Return the index at which the cumulative weight first exceeds a share `uniform` (below 1) of its total."""
    # A sum in another order may grow by its rounding where nothing is added: what has no weight is never drawn.
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    total = jnp.max(cumulative, axis=-1, keepdims=True)
    return jnp.argmax(cumulative > uniform[:, None] * total, axis=-1).astype(jnp.int32)


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

    def choose_token(step: Int[Array, ""], logits: Float[Array, "N V"]) -> Int[Array, " N"]:
        return draw_tokens(jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, step), logits)

    rows = rollout(
        decode_step,
        jax.tree.map(lambda leaf: jnp.repeat(leaf, num_captions, axis=0), carry),
        special_ids,
        max_length=max_length,
        processors=processors,
        choose_token=choose_token,
    )
    captions = jax.tree.map(lambda leaf: leaf.reshape(size, num_captions, *leaf.shape[2:]), rows)
    best_first = jnp.argsort(captions.log_probs, axis=-1, descending=True)
    return jax.tree.map(lambda leaf: jax.vmap(lambda row, order: row[order])(leaf, best_first), captions)
