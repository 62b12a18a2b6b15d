"""The loop of greedy search and of sampling: one sentence per row, one token per step, until all sentences ended."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.logits_processors import LogitsProcessor, chain
from capjax.types import Carry, DecodeStep, SpecialIds

ChooseToken = Callable[[Int[Array, ""], Float[Array, "B V"]], Int[Array, " B"]]
"""(step, processed logits) -> the next token of every sentence."""


class _State(NamedTuple):
    step: Int[Array, ""]
    carry: Carry
    last_tokens: Int[Array, " B"]
    tokens: Int[Array, "B L"]
    log_probs: Float[Array, " B"]
    ended: Bool[Array, " B"]


def batch_size(carry: Carry) -> int:
    """Return B, the leading axis of every leaf of `carry`."""
    return jax.tree.leaves(carry)[0].shape[0]


def rollout(
    decode_step: DecodeStep,
    carry: Carry,
    special_ids: SpecialIds,
    *,
    max_length: int,
    processors: Sequence[LogitsProcessor],
    choose_token: ChooseToken,
) -> Hypotheses:
    """Feed START, then what `choose_token` chose, until every sentence ended or has `max_length` tokens.

    Args:
      decode_step: the model.
      carry: its initial state, leaves with leading axis B.
      special_ids: ids of PAD, UNK, START and END.
      max_length: L, tokens per sentence at most.
      processors: applied to the logits before `choose_token` sees them; log-probabilities stay those of the model.
      choose_token: the search proper.

    Returns:
      Hypotheses with K = 1.
    """
    constrain = chain(processors, special_ids.end)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < max_length) & ~jnp.all(state.ended)

    def advance(state: _State) -> _State:
        carry, logits = decode_step(state.carry, state.last_tokens)
        logits = logits.astype(jnp.float32)
        token = choose_token(state.step, constrain(state.tokens, state.step, logits))
        log_prob = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(state.ended, special_ids.pad, token)
        return _State(
            step=state.step + 1,
            carry=carry,
            last_tokens=token,
            tokens=state.tokens.at[:, state.step].set(token),
            log_probs=state.log_probs + jnp.where(state.ended, 0.0, log_prob),
            ended=state.ended | (token == special_ids.end),
        )

    size = batch_size(carry)
    state = jax.lax.while_loop(
        unfinished,
        advance,
        _State(
            step=jnp.zeros((), jnp.int32),
            carry=carry,
            last_tokens=jnp.full(size, special_ids.start, jnp.int32),
            tokens=jnp.full((size, max_length), special_ids.pad, jnp.int32),
            log_probs=jnp.zeros(size, jnp.float32),
            ended=jnp.zeros(size, bool),
        ),
    )
    lengths = jnp.sum(state.tokens != special_ids.pad, axis=-1, dtype=jnp.int32)
    return Hypotheses(state.tokens[:, None], state.log_probs[:, None], lengths[:, None])
