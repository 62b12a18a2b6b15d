"""What a beam search divides log-probabilities by, so that short captions do not win by being short."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LengthFormula = Literal["gnmt", "plain"]


@dataclass(frozen=True)
class LengthPenalty:
    """Rank hypotheses by log P(Y) / lp(|Y|), where |Y| counts the tokens of the sum, END included.

    "gnmt":  lp(n) = (5 + n)^alpha / 6^alpha, Wu et al. 2016, "Google's Neural Machine Translation System", equation 14
             (without its coverage penalty).
    "plain": lp(n) = n^alpha; alpha = 1 is the mean log-probability of a token.

    alpha = 0 ranks by log P(Y) itself; a larger alpha favours longer captions, a negative one shorter.
    """

    alpha: float = 0.0
    formula: LengthFormula = "gnmt"

    def divisor(self, length: int | Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return lp(length); it is monotone in the length, which the early end of a search relies on."""
        num_tokens = jnp.asarray(length, jnp.float32)
        return ((5.0 + num_tokens) / 6.0) ** self.alpha if self.formula == "gnmt" else num_tokens**self.alpha


NO_LENGTH_PENALTY = LengthPenalty()
