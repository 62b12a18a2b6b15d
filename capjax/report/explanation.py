"""What can be told of how a caption came about: its words, what else was likely, where the model looked, the beam."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

END = "(end)"
"""How the end of a caption is shown, as one of its words."""


class LikelyWord(NamedTuple):
    """A word and how likely it was, 0 to 1."""

    text: str
    probability: float


class ExplainedWord(NamedTuple):
    """A word of a caption.

    Attributes:
        text: the word, or `END`.
        probability: of the word given the image and the words before, 0 to 1.
        likely: the words that were most likely in its place, best first; it may be among them.
    """

    text: str
    probability: float
    likely: tuple[LikelyWord, ...] = ()


class Explanation(NamedTuple):
    """What a model thought as it wrote a caption.

    Attributes:
        caption: the sentence.
        words: of the sentence, the end as the last unless the search was cut off.
        heat: how much each place of the picture had to do with each word, in the unit of the method; below 0 where a
            place spoke against the word. None where that cannot be told.
        method: that gave the heat, "" without one.
    """

    caption: str
    words: tuple[ExplainedWord, ...]
    heat: Float[np.ndarray, "words side side"] | None
    method: str

    @property
    def brightness(self) -> Float[np.ndarray, "words side side"] | None:
        """The heat as 0 (nothing, or against the word) to 1 (the place that spoke most for it), word by word."""
        if self.heat is None:
            return None
        light = np.maximum(self.heat, 0.0)
        return light / np.maximum(light.max(axis=(1, 2), keepdims=True), 1e-12)


class Branch(NamedTuple):
    """A word that a beam search kept, after the words that lead to it.

    Attributes:
        text: the word, or `END`.
        parent: the place in the list of branches of the word before, -1 at the start.
        log_prob: of the words up to here, in nats.
        chosen: whether the caption goes through it.
        is_whole: whether the words up to here are a caption: with an end, or as long as they may be.
    """

    text: str
    parent: int
    log_prob: float
    chosen: bool = False
    is_whole: bool = False


class Look(NamedTuple):
    """A picture with what is to be told of its caption.

    Attributes:
        image: the pixels that the heat covers.
        explanation: of the caption.
        branches: the search that found it, parents first; none for one without beams.
        name: of the picture.
        references: captions that people wrote.
    """

    image: UInt8[np.ndarray, "S S 3"]
    explanation: Explanation
    branches: Sequence[Branch] = ()
    name: str = ""
    references: Sequence[str] = ()


def explained_json(explanation: Explanation, crop: str = "none") -> dict[str, Any]:
    """Return an explanation as JSON values, for programs and pages: probabilities to six digits, heat to three.

    What is no number, as with weights that diverged, is 0: JSON has none.

    Args:
        explanation: of a caption.
        crop: what part of the picture the heat covers: its "center" square, or all ("none").
    """
    brightness = explanation.brightness
    words = []
    for i, word in enumerate(explanation.words):
        told: dict[str, Any] = {"text": word.text, "probability": _rounded(word.probability, 6)}
        told["likely"] = [{"text": text, "probability": _rounded(p, 6)} for text, p in word.likely]
        if brightness is not None:
            told["heat"] = [[_rounded(value, 3) for value in row] for row in brightness[i].tolist()]
        words.append(told)
    return {"words": words, "heat_method": explanation.method, "crop": crop}


def _rounded(value: float, digits: int) -> float:
    return round(float(np.nan_to_num(value)), digits)
