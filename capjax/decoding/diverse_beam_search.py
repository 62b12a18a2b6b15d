"""Diverse beam search: groups of beams, each discouraged from saying what the groups before it say."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from capjax.decoding.beam_search import Candidates, Selector


class DiverseSelector:
    """Run `num_groups` copies of a selector, each with the Hamming penalty of the groups before it.

    At each step group g pays `strength` for a token as often as earlier groups chose it at this step: Vijayakumar et
    al. 2016, "Diverse Beam Search", equation 5 and algorithm 1 with Hamming diversity. As in the authors' code the
    penalties a hypothesis paid stay in its score, which ranks it within its group. The log-probability it is returned
    with is the model's, and ranks the groups' hypotheses among each other.

    One group is the selector itself.
    """

    def __init__(self, group: Selector, num_groups: int, strength: float):
        self.group = group
        self.num_groups = num_groups
        self.strength = strength
        self.initial = np.tile(group.initial, num_groups)
        self.accepting = np.tile(group.accepting, num_groups)

    def __call__(self, offsets: Float[Array, "B M"], logits: Float[Array, "B M V"]) -> Candidates:
        """Let the groups choose in turn."""
        group_slots = len(self.group.initial)
        penalties = jnp.zeros((logits.shape[0], logits.shape[2]), logits.dtype)
        choices = []
        for first in range(0, len(self.initial), group_slots):
            slots = slice(first, first + group_slots)
            choice = self.group(offsets[:, slots], logits[:, slots] - penalties[:, None, :])
            choices.append(choice._replace(parents=choice.parents + first))
            paid = jnp.where(choice.scores > -jnp.inf, self.strength, 0.0)
            penalties = jax.vmap(lambda row, tokens, paid: row.at[tokens].add(paid))(penalties, choice.tokens, paid)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *choices)
