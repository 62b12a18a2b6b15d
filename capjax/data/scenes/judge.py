"""What an evaluation can say of captions of scenes: a program that knows how a picture was made checks each claim."""

from capjax.data.scenes.builder import scene_of
from capjax.data.scenes.claims import caption_is_true
from capjax.types import CaptionRecord

KIND = "rendered, not photographs"
_NOTE = """This page is about scenes, a data set that capjax renders itself: coloured shapes, not photographs. It shows
that the whole way works, from pictures to sentences; its scores say nothing about photographs.

A caption is marked right if all that it says is true of the picture, as a program that knows how the picture was made
can tell."""

_HELD_OUT = """Every picture below holds a combination of colour, shape and time of day that no training picture has,
neither of the captioner nor of its encoder: red stars by day, say, after red stars at night and red hearts by day."""


def verdict(record: CaptionRecord, caption: str) -> str:
    """Say whether everything that a caption says of a picture is true."""
    return "right" if caption_is_true(caption, scene_of(record.image_id)) else "wrong"


def note(split: str) -> str:
    """Say what the pictures of a split are, for a page that shows them."""
    return f"{_NOTE}\n\n{_HELD_OUT}" if split == "test" else _NOTE
