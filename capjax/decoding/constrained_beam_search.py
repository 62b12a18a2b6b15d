"""Constrained beam search: captions that contain given words."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from capjax.decoding.beam_search import Candidates, best_candidates, slot_candidates


class ConstrainedSelector:
    """Keep a beam of its own for every state of a finite-state machine that tracks the words said so far.

    Anderson et al. 2017, "Guided Open Vocabulary Image Captioning with Constrained Beam Search", section 3. Every
    constraint is a set of alternative tokens, one of which must occur. State s is the bit set of the constraints met;
    the `beam_size` best candidates that lead to a state form its beam. Hypotheses finish only in the last state, where
    all are met, so that END is not a candidate in the others. C constraints make 2^C beams.
    """

    num_groups = 1

    def __init__(self, beam_size: int, constraints: Sequence[Sequence[int]], end: int):
        self.beam_size = beam_size
        self.constraints = constraints
        self.end = end
        self.num_states = 2 ** len(constraints)
        self.initial = np.arange(self.num_states * beam_size) == 0
        self.accepting = np.repeat(np.arange(self.num_states) == self.num_states - 1, beam_size)

    def __call__(self, offsets: Float[Array, "B M"], logits: Float[Array, "B M V"]) -> Candidates:
        """Fill the beam of every state from the states that lead to it."""
        batch_size = logits.shape[0]
        arrivals = self._arrivals(logits.shape[-1])
        state_of_slot = np.repeat(np.arange(self.num_states), self.beam_size)
        stays = arrivals[state_of_slot] == state_of_slot[:, None]
        staying = slot_candidates(offsets, jnp.where(stays[None], logits, -jnp.inf), self.beam_size)
        staying = jax.tree.map(lambda leaf: leaf.reshape(batch_size, self.num_states, -1), staying)
        chosen = []
        for state in range(self.num_states):
            # Few words lead from one state to another: all of them are candidates.
            parents, tokens = np.nonzero((arrivals[state_of_slot] == state) & (state_of_slot != state)[:, None])
            moving = Candidates(
                jnp.broadcast_to(parents, (batch_size, len(parents))),
                jnp.broadcast_to(tokens, (batch_size, len(tokens))),
                offsets[:, parents] + logits[:, parents, tokens],
            )
            arriving = jax.tree.map(
                lambda stay, move, state=state: jnp.concatenate([stay[:, state], move], axis=1), staying, moving
            )
            chosen.append(best_candidates(arriving, self.beam_size))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *chosen)

    def _arrivals(self, vocabulary_size: int) -> Int[np.ndarray, "S {vocabulary_size}"]:
        """Return the transition table: the state after a token, -1 where the token is not allowed."""
        met = np.zeros(vocabulary_size, int)
        for bit, alternatives in enumerate(self.constraints):
            met[list(alternatives)] |= 1 << bit
        arrivals = np.arange(self.num_states)[:, None] | met[None, :]
        arrivals[:-1, self.end] = -1
        return arrivals
