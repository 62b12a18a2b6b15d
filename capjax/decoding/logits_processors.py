"""Constraints on the next token, as pure functions that every search applies.

A constraint sets logits to -inf and leaves the others alone; the three that shape a distribution to sample from
(temperature, top-k, top-p) are processors too. Processors compose with `chain`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from capjax.errors import CapjaxError

Process = Callable[[Int[Array, "N L"], Int[Array, ""], Float[Array, "N V"]], Float[Array, "N V"]]
"""(history, step, logits) -> logits; `history` holds the tokens chosen so far, of which the first `step` count."""


class LogitsProcessor(NamedTuple):
    """A constraint on the next token.

    Attributes:
      process: what it does to logits.
      most_forbidden: how many tokens it sets to -inf at most, given L, the length that captions may have.
    """

    process: Process
    most_forbidden: Callable[[int], int]


def chain(processors: Sequence[LogitsProcessor], end: int) -> Process:
    """Return what applies `processors` in order.

    Where together they forbid every token, END keeps its logit: a sentence that has nothing left to say ends.
    """

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        processed = logits
        for processor in processors:
            processed = processor.process(history, step, processed)
        max_length, vocabulary_size = history.shape[1], logits.shape[1]
        if vocabulary_size > sum(processor.most_forbidden(max_length) for processor in processors):
            return processed  # some token is always left: to look whether costs two passes over all logits
        stuck = jnp.max(processed, axis=-1, keepdims=True) == -jnp.inf
        is_end = token_mask((end,), vocabulary_size)[None, :]
        return jnp.where(stuck, jnp.where(is_end, logits, -jnp.inf), processed)

    return process


def token_mask(token_ids: Sequence[int], vocabulary_size: int) -> Bool[np.ndarray, " {vocabulary_size}"]:
    """Return a mask [V] that is true at `token_ids`.

    Raises:
      CapjaxError: an id lies outside the vocabulary.
    """
    outside = [token_id for token_id in token_ids if not 0 <= token_id < vocabulary_size]
    if outside:
        raise CapjaxError(
            f"token ids {outside} lie outside the model's vocabulary of {vocabulary_size}: "
            "decode with the vocabulary that the model was trained with"
        )
    mask = np.zeros(vocabulary_size, bool)
    mask[list(token_ids)] = True
    return mask


def forbid_tokens(token_ids: Sequence[int]) -> LogitsProcessor:
    """Never choose any of `token_ids`."""

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        del history, step
        return jnp.where(token_mask(token_ids, logits.shape[-1])[None, :], -jnp.inf, logits)

    return LogitsProcessor(process, lambda _: len(token_ids))


def require_min_length(min_length: int, end: int) -> LogitsProcessor:
    """Forbid END until `min_length` words have been chosen."""

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        del history
        is_end = token_mask((end,), logits.shape[-1])[None, :]
        return jnp.where(is_end & (step < min_length), -jnp.inf, logits)

    return LogitsProcessor(process, lambda _: 1)


def forbid_repeated_ngrams(ngram_size: int) -> LogitsProcessor:
    """Forbid every token that would complete an n-gram already in the sentence (3: trigram blocking; 1: no word twice).

    Paulus, Xiong & Socher 2018, "A Deep Reinforced Model for Abstractive Summarization", section 2.5.
    """

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        num_sentences, length = history.shape
        num_ngrams = length - ngram_size + 1
        if num_ngrams < 1:  # no sentence is long enough to hold one n-gram
            return logits
        repeats = jnp.broadcast_to(jnp.arange(num_ngrams) + ngram_size - 1 < step, (num_sentences, num_ngrams))
        for offset in range(ngram_size - 1):
            # Until ngram_size - 1 tokens exist the position clips to 0; `repeats` is all false then.
            position = jnp.maximum(step - ngram_size + 1 + offset, 0)
            recent = jax.lax.dynamic_slice_in_dim(history, position, 1, axis=1)
            repeats &= history[:, offset : offset + num_ngrams] == recent
        # History beyond `step` is PAD, whose logit the +inf of a minimum leaves alone.
        ceilings = jnp.where(repeats, -jnp.inf, jnp.inf).astype(logits.dtype)
        return jax.vmap(lambda row, tokens, ceiling: row.at[tokens].min(ceiling))(
            logits, history[:, ngram_size - 1 :], ceilings
        )

    return LogitsProcessor(process, lambda max_length: max_length)


def scale_temperature(temperature: float) -> LogitsProcessor:
    """Sharpen (below 1) or flatten (above 1) the distribution: p^(1/t) / sum p^(1/t), that is logits / t."""

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        del history, step
        return logits / temperature

    return LogitsProcessor(process, lambda _: 0)


def keep_top_k(k: int) -> LogitsProcessor:
    """Keep the k most probable tokens (Fan, Lewis & Dauphin 2018); of equal ones those with the lower ids."""

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        del history, step
        values, tokens = jax.lax.top_k(logits, min(k, logits.shape[-1]))
        return jax.vmap(lambda row, tokens, values: jnp.full_like(row, -jnp.inf).at[tokens].set(values))(
            logits, tokens, values
        )

    return LogitsProcessor(process, lambda _: 0)


def keep_top_p(p: float) -> LogitsProcessor:
    """Keep the smallest set of most probable tokens whose probabilities sum to at least p.

    Nucleus sampling: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", equation 2. Tokens exactly
    as probable as the last one of the set stay too.
    """

    def process(history: Int[Array, "N L"], step: Int[Array, ""], logits: Float[Array, "N V"]) -> Float[Array, "N V"]:
        del history, step
        probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

        # The set is what reaches a threshold: the largest one that leaves enough mass. Floats from 0 to 1 are ordered
        # as their bits, so that 30 halvings find it exactly, many times faster than sorting the vocabulary.
        def at_least(threshold_bits: Int[Array, " N"]) -> Bool[Array, "N V"]:
            return probs >= jax.lax.bitcast_convert_type(threshold_bits, jnp.float32)[:, None]

        Bounds = tuple[Int[Array, " N"], Int[Array, " N"]]

        def halve(_: Int[Array, ""], bounds: Bounds) -> Bounds:
            low, high = bounds
            middle = (low + high) // 2
            enough = jnp.sum(jnp.where(at_least(middle), probs, 0.0), axis=-1) >= p
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        above_one = np.float32(1.0).view(np.int32) + 1
        low = jnp.zeros(logits.shape[0], jnp.int32)
        low, _ = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, above_one)))
        return jnp.where(at_least(low), logits, -jnp.inf)

    return LogitsProcessor(process, lambda _: 0)
