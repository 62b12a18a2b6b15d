"""What every search returns."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Hypotheses(NamedTuple):
    """Captions of a batch of images, best first.

    `tokens` hold no START; END stands after the last word if the search reached it within `max_length` tokens, and PAD
    fills the rest. `log_probs` are natural logarithms of the model's own probability: the sum over the tokens, END
    included, of log softmax of the raw logits. Whatever a search forbids, sharpens or penalises changes which tokens
    it chooses, never their log-probability (nothing is renormalised), so that captions of all searches compare.
    `lengths` count the tokens before PAD, END included.

    "Best" means highest log-probability, or highest length-penalised log-probability where a search has a penalty.
    Where fewer than K captions exist (a vocabulary of three words), the missing ones are all PAD, of length 0, with
    log-probability -inf.
    """

    tokens: Int[Array, "B K L"]
    log_probs: Float[Array, "B K"]
    lengths: Int[Array, "B K"]
