"""Beam search: the loop that all its variants share, and the plain variant.

At each step every live hypothesis proposes its continuations and a `Selector` chooses which of them live on. A chosen
one that ends with END (or is `max_length` long) leaves the beam for the pool of finished ones, so the beam is one
narrower for a step: the search of Sutskever et al. 2014, section 3.2, and of most captioning work. With a beam of 1
this is greedy search whatever the length penalty. Diverse and constrained search are other selectors, in files of
their own, and compose.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.length_penalty import NO_LENGTH_PENALTY, LengthPenalty
from capjax.decoding.logits_processors import LogitsProcessor, chain
from capjax.decoding.rollout import batch_size
from capjax.ops.top_k import block_top_k
from capjax.types import Carry, DecodeStep, SpecialIds


class Candidates(NamedTuple):
    """Continuations: the beam slot that each continues, its new token and its score (-inf: none)."""

    parents: Int[Array, "B N"]
    tokens: Int[Array, "B N"]
    scores: Float[Array, "B N"]


Watch = Callable[[Candidates], None]
"""Is told on the host what lives on after each step, NumPy arrays [1, M], with the model's log-probabilities."""


@runtime_checkable
class Selector(Protocol):
    """Chooses the continuations that live on.

    The M beam slots form `num_groups` equal runs, each with its own pool of finished hypotheses. A search starts with
    one empty hypothesis in every slot of `initial` [M]; hypotheses may finish in the slots of `accepting` [M].
    """

    num_groups: int
    initial: Bool[np.ndarray, " M"]
    accepting: Bool[np.ndarray, " M"]

    def __call__(self, offsets: Float[Array, "B M"], logits: Float[Array, "B M V"]) -> Candidates:
        """Choose M of the candidates (m, v), whose scores are offsets[m] + logits[m, v]: one for every slot."""
        ...


def slot_candidates(offsets: Float[Array, "B M"], logits: Float[Array, "B M V"], num_best: int) -> Candidates:
    """Return the `num_best` candidates of every slot, slot by slot."""
    num_best = min(num_best, logits.shape[-1])
    best_logits, tokens = block_top_k(logits, num_best)
    flat = (offsets.shape[0], offsets.shape[1] * num_best)
    parents = jnp.broadcast_to(jnp.repeat(jnp.arange(offsets.shape[1]), num_best), flat)
    return Candidates(parents, tokens.reshape(flat), (offsets[:, :, None] + best_logits).reshape(flat))


def best_candidates(candidates: Candidates, num_best: int) -> Candidates:
    """Return the `num_best` (N at most) candidates of highest score; of equal ones the earlier."""
    scores, best = jax.lax.top_k(candidates.scores, num_best)
    return Candidates(_take(candidates.parents, best), _take(candidates.tokens, best), scores)


class BestSelector:
    """Plain beam search: the best `beam_size` of all candidates live on."""

    num_groups = 1

    def __init__(self, beam_size: int):
        self.beam_size = beam_size
        self.initial = np.arange(beam_size) == 0
        self.accepting = np.ones(beam_size, bool)

    def __call__(self, offsets: Float[Array, "B M"], logits: Float[Array, "B M V"]) -> Candidates:
        """Choose the best candidates."""
        return best_candidates(slot_candidates(offsets, logits, self.beam_size), self.beam_size)


class _Finished(NamedTuple):
    tokens: Int[Array, "B G N L"]
    log_probs: Float[Array, "B G N"]
    scores: Float[Array, "B G N"]
    lengths: Int[Array, "B G N"]


class _State(NamedTuple):
    step: Int[Array, ""]
    carry: Carry
    tokens: Int[Array, "B M L"]
    last_tokens: Int[Array, "B M"]
    log_probs: Float[Array, "B M"]
    scores: Float[Array, "B M"]
    """What the selector ranks by, -inf in empty slots; below `log_probs` where a selector subtracted something."""
    finished: _Finished


def beam_search(
    decode_step: DecodeStep,
    carry: Carry,
    special_ids: SpecialIds,
    *,
    selector: Selector,
    max_length: int = 20,
    num_captions: int = 1,
    length_penalty: LengthPenalty = NO_LENGTH_PENALTY,
    processors: Sequence[LogitsProcessor] = (),
    watch: Watch | None = None,
) -> Hypotheses:
    """Caption a batch by beam search.

    A sentence is done when no hypothesis in its beam can enter the pool of finished ones any more: log-probabilities
    only fall, so the best that a live hypothesis can reach is its present one under the kindest length penalty ahead
    of it. The search ends when all sentences are done; that never changes its result.

    Args:
      decode_step: the model.
      carry: its initial state, leaves with leading axis B.
      special_ids: ids of PAD, UNK, START and END.
      selector: `BestSelector(beam_size)`, or that of another variant.
      max_length: L, tokens per sentence at most (END, if it comes, included). Hypotheses without END at that length
        are finished as they stand.
      num_captions: K, captions returned per image.
      length_penalty: ranks finished hypotheses.
      processors: constraints on the next token; log-probabilities are not renormalised over what they leave.
      watch: for a search that people want to look at, on one device; it costs a call a step.

    Returns:
      Hypotheses, highest length-penalised log-probability first.
    """
    num_sentences, num_slots, num_groups = batch_size(carry), len(selector.initial), selector.num_groups
    group_captions = -(-num_captions // num_groups)
    constrain = chain(processors, special_ids.end)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < max_length) & jnp.any(state.scores > -jnp.inf)

    def advance(state: _State) -> _State:
        carry, logits = decode_step(state.carry, state.last_tokens.reshape(-1))
        logits = logits.astype(jnp.float32)
        normalizers = jax.nn.logsumexp(logits, axis=-1).reshape(num_sentences, num_slots)
        logits = constrain(state.tokens.reshape(num_sentences * num_slots, max_length), state.step, logits)
        logits = logits.reshape(num_sentences, num_slots, -1)

        choice = selector(state.scores - normalizers, logits)
        chosen_logits = jax.vmap(lambda logits, m, v: logits[m, v])(logits, choice.parents, choice.tokens)
        log_probs = _take(state.log_probs, choice.parents) + chosen_logits - _take(normalizers, choice.parents)
        tokens = _take(state.tokens, choice.parents).at[:, :, state.step].set(choice.tokens)
        if watch is not None:
            told = choice._replace(scores=jnp.where(choice.scores > -jnp.inf, log_probs, -jnp.inf))
            jax.debug.callback(lambda *parts: watch(Candidates(*map(np.asarray, parts))), *told, ordered=True)

        is_end = choice.tokens == special_ids.end
        complete = (is_end | (state.step == max_length - 1)) & selector.accepting[None, :]
        length = state.step + 1
        penalized = jnp.where(complete, choice.scores / length_penalty.divisor(length), -jnp.inf)
        newly = _Finished(tokens, log_probs, penalized, jnp.full_like(choice.tokens, length))
        newly = jax.tree.map(
            lambda leaf: leaf.reshape(num_sentences, num_groups, num_slots // num_groups, *leaf.shape[2:]), newly
        )
        finished = _best_finished(state.finished, newly, group_captions)

        scores = jnp.where(is_end, -jnp.inf, choice.scores)
        kindest = jnp.maximum(length_penalty.divisor(length + 1), length_penalty.divisor(max_length))
        attainable = jnp.max((scores / kindest).reshape(num_sentences, num_groups, -1), axis=-1)
        done = jnp.all(attainable <= finished.scores[:, :, -1], axis=1)
        return _State(
            step=length,
            carry=_reorder(carry, choice.parents),
            tokens=tokens,
            last_tokens=choice.tokens,
            log_probs=log_probs,
            scores=jnp.where(done[:, None], -jnp.inf, scores),
            finished=finished,
        )

    pool = (num_sentences, num_groups, group_captions)
    beam = (num_sentences, num_slots)
    state = jax.lax.while_loop(
        unfinished,
        advance,
        _State(
            step=jnp.zeros((), jnp.int32),
            carry=jax.tree.map(lambda leaf: jnp.repeat(leaf, num_slots, axis=0), carry),
            tokens=jnp.full((*beam, max_length), special_ids.pad, jnp.int32),
            last_tokens=jnp.full(beam, special_ids.start, jnp.int32),
            log_probs=jnp.zeros(beam, jnp.float32),
            scores=jnp.broadcast_to(jnp.where(selector.initial, 0.0, -jnp.inf).astype(jnp.float32), beam),
            finished=_Finished(
                tokens=jnp.full((*pool, max_length), special_ids.pad, jnp.int32),
                log_probs=jnp.full(pool, -jnp.inf, jnp.float32),
                scores=jnp.full(pool, -jnp.inf, jnp.float32),
                lengths=jnp.zeros(pool, jnp.int32),
            ),
        ),
    )
    captions = jax.tree.map(lambda leaf: leaf.reshape(num_sentences, -1, *leaf.shape[3:]), state.finished)
    ranking = captions.log_probs / length_penalty.divisor(jnp.maximum(captions.lengths, 1))
    _, best = jax.lax.top_k(ranking, num_captions)
    return Hypotheses(_take(captions.tokens, best), _take(captions.log_probs, best), _take(captions.lengths, best))


def _reorder(carry: Carry, parents: Int[Array, "B M"]) -> Carry:
    """Give every beam slot the decoder state of the slot that it continues."""
    return jax.tree.map(
        lambda leaf: _take(leaf.reshape(*parents.shape, *leaf.shape[1:]), parents).reshape(leaf.shape), carry
    )


def _take(values: Shaped[Array, "B M *rest"], indices: Int[Array, "B N"]) -> Shaped[Array, "B N *rest"]:
    """Return values[b, indices[b, n]]."""
    return jax.vmap(lambda row, index: row[index])(values, indices)


def _best_finished(pool: _Finished, newly: _Finished, num_best: int) -> _Finished:
    """Merge newly finished hypotheses into the pool, which is kept best first; of equal ones the older stay."""
    merged = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), pool, newly)
    _, best = jax.lax.top_k(merged.scores, num_best)
    return jax.tree.map(lambda leaf: jax.vmap(_take)(leaf, best), merged)
