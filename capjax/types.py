"""What the packages hand to each other, and the glossary of dimensions.

| letter  | meaning                                | letter | meaning                      |
| ------- | -------------------------------------- | ------ | ---------------------------- |
| B       | captions in a batch; rows of a search  | L      | caption length in tokens     |
| N       | images in a batch (B is a multiple)    | E      | word embedding               |
| H, W, C | image height, width, channels          | D      | LSTM hidden units            |
| P       | grid positions of the encoder (64)     | M      | what enters the last layer   |
| F       | encoder features (2048)                | V      | vocabulary                   |
| S       | side of a preprocessed image           | K, R   | an image's captions, references |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key

Context = Any
"""What a decoder knows of the images and does not change while it writes: any pytree, leaves with leading axis N."""

Carry = Any
"""Decoder state: any pytree whose leaves have the batch as leading axis."""

DecodeStep = Callable[[Carry, Int[Array, " B"]], tuple[Carry, Float[Array, "B V"]]]
"""One step of a decoder: previous tokens in, logits over the next tokens out."""

RowKeys = Key[Array, " B"]
"""One random key per caption, for what is random in training; None in its place means that nothing is."""


@dataclass(frozen=True)
class SpecialIds:
    """Token ids with a meaning of their own, the same in every vocabulary; they never reach the reader."""

    pad: int = 0
    unk: int = 1
    start: int = 2
    end: int = 3


SPECIAL_IDS = SpecialIds()


@dataclass(frozen=True)
class CaptionRecord:
    """One image of a dataset with all its captions, as raw text."""

    image_id: int
    file_name: str
    captions: tuple[str, ...]


class Features(NamedTuple):
    """What an encoder sees in a batch of images."""

    pooled: Float[Array, "N F"]
    grid: Float[Array, "N P F"] | None = None
