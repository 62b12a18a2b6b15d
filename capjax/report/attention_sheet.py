"""A sheet of pictures that shows where a model looked: for each word of a caption the picture, lit where it looked."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from capjax.disk import write_atomically
from capjax.errors import CapjaxError
from capjax.report.contents import one_line
from capjax.report.text_blocks import GREY, INK, PAPER, Text, draw_text, font

_PICTURE, _TILE, _GAP, _MARGIN = 236, 112, 8, 32
_TILES_BESIDE = 8


@dataclass(frozen=True)
class Look:
    """A picture, what a model said of it, and where it looked.

    Attributes:
      image: the pixels that the grid covers, uint8 [S, S, 3].
      caption: the generated caption.
      words: of the caption, and what stands for its end.
      maps: for each of them, attention over the grid.
      references: captions that people wrote.
    """

    image: UInt8[np.ndarray, "S S 3"]
    caption: str
    words: Sequence[str]
    maps: Float[np.ndarray, "_ side side"]
    references: Sequence[str] = ()


def write_attention_sheet(path: str | os.PathLike[str], looks: Sequence[Look], heading: str = "") -> None:
    """Draw pictures below each other, each with its caption, references and a tile for every word.

    A tile is the picture, dark where the word's attention is low; the brightest place of each is where it is highest.

    Args:
      path: PNG to write.
      looks: what to show, in this order.
      heading: what this is, printed on top.

    Raises:
      CapjaxError: there is nothing to show, or the file cannot be written.
    """
    if not looks:
        raise CapjaxError("expected pictures for a sheet, got none")
    width = 2 * _MARGIN + _PICTURE + _TILES_BESIDE * (_TILE + _GAP)
    blocks = [_draw_look(look, width - 2 * _MARGIN) for look in looks]
    if one_line(heading):
        blocks.insert(0, draw_text(Text(heading, 21, INK, max_lines=4, bold=True), width - 2 * _MARGIN))
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(b.height + 2 * _GAP for b in blocks)), PAPER)
    offset = _MARGIN
    for block in blocks:
        sheet.paste(block, (_MARGIN, offset))
        offset += block.height + 2 * _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _draw_look(look: Look, width: int) -> Image.Image:
    picture = Image.fromarray(look.image).resize((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
    right = width - _PICTURE - _GAP
    texts = [Text(one_line(look.caption) or "(empty caption)", 18, INK, max_lines=2, bold=True)]
    texts += [Text(reference, 13, GREY, max_lines=1) for reference in look.references[:3]]
    drawn = [draw_text(text, right) for text in texts]
    top = sum(block.height for block in drawn) + _GAP
    lines = -(-len(look.words) // _TILES_BESIDE)
    pitch = _TILE + 22
    block = Image.new("RGB", (width, max(_PICTURE, top + lines * pitch)), PAPER)
    block.paste(picture, (0, 0))
    offset = 0
    for text in drawn:
        block.paste(text, (_PICTURE + _GAP, offset))
        offset += text.height
    draw = ImageDraw.Draw(block)
    small = np.asarray(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS))
    for i, (word, attention) in enumerate(zip(look.words, look.maps, strict=True)):
        x = _PICTURE + _GAP + i % _TILES_BESIDE * (_TILE + _GAP)
        y = top + i // _TILES_BESIDE * pitch
        block.paste(_light(small, attention), (x, y))
        draw.text((x, y + _TILE + 2), one_line(word), INK, font(13))
    return block


def _light(image: UInt8[np.ndarray, "S S 3"], attention: Float[np.ndarray, "side side"]) -> Image.Image:
    """Darken a picture where attention is low; what is brightest is full."""
    share = np.asarray(attention, np.float32) / max(float(np.max(attention)), 1e-12)
    smooth = Image.fromarray(share).resize(image.shape[:2], Image.Resampling.BICUBIC)
    brightness = 0.15 + 0.85 * np.clip(np.asarray(smooth), 0.0, 1.0)
    return Image.fromarray((image * brightness[:, :, None]).astype(np.uint8))
