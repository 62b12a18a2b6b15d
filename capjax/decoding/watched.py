"""A selector that tells somebody on the host what it chose, step by step, for a search that people want to look at."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from capjax.decoding.beam_search import Candidates, Selector

Report = Callable[[Candidates], None]
"""Gets the candidates of one step, NumPy arrays [B, M]."""


class WatchedSelector:
    """Chooses as another selector does, and reports each choice in order. For one device; it costs a call a step."""

    def __init__(self, selector: Selector, report: Report) -> None:
        self._selector, self._report = selector, report
        self.num_groups, self.initial, self.accepting = selector.num_groups, selector.initial, selector.accepting

    def __call__(self, offsets: Float[Array, "B M"], logits: Float[Array, "B M V"]) -> Candidates:
        """Choose, and say what was chosen."""
        choice = self._selector(offsets, logits)
        jax.debug.callback(lambda *parts: self._report(Candidates(*map(np.asarray, parts))), *choice, ordered=True)
        return choice
