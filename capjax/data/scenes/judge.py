"""What an evaluation can say of captions of scenes: a program that knows how a picture was made checks each claim."""

from collections.abc import Sequence

from capjax.data.scenes.builder import of_pairs, scene_of
from capjax.data.scenes.claims import caption_is_true
from capjax.data.scenes.layout import is_held_out
from capjax.types import CaptionRecord

KIND = "rendered, not photographs"
_NOTE = """This page is about scenes, a data set that capjax renders itself: coloured shapes, not photographs. It shows
that the whole way works, from pictures to sentences; its scores say nothing about photographs.

A caption is marked right if all that it says is true of the picture, as a program that knows how the picture was made
can tell."""

_COMBINATIONS = """Every picture below holds a combination of colour, shape and time of day that no training picture
has, neither of the captioner nor of its encoder: red stars by day, say, after red stars at night and red hearts by
day."""

_PAIRS = """Every picture below holds a pair of colour and shape that no training picture has, neither of the captioner
nor of its encoder: purple hearts, say, after purple stars and pink hearts."""


def verdict(record: CaptionRecord, caption: str) -> str:
    """Say whether everything that a caption says of a picture is true."""
    return "right" if caption_is_true(caption, scene_of(record.image_id)) else "wrong"


def note(records: Sequence[CaptionRecord]) -> str:
    """Say what some pictures are, for a page that shows them."""
    if all(is_new(record) for record in records):
        pairs = all(of_pairs(record.image_id) for record in records)
        return f"{_NOTE}\n\n{_PAIRS if pairs else _COMBINATIONS}"
    return _NOTE


def is_new(record: CaptionRecord) -> bool:
    """Tell whether a picture shows what is held out of training."""
    scene, what = scene_of(record.image_id), "pairs" if of_pairs(record.image_id) else "combinations"
    return any(is_held_out(group.kind, scene.background, what) for group in scene.groups)
