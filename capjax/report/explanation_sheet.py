"""A sheet of pictures that shows how captions came about.

Beside each picture its caption, and for every word a tile: the picture, lit where it had to do with the word, how
likely the word was, and what else was likely. Below, the beams of the search as a tree.
"""

import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.report.beam_tree import described, draw_tree, told
from capjax.report.contents import one_line
from capjax.report.explanation import ExplainedWord, Look
from capjax.report.text_blocks import GREY, INK, PAPER, Text, draw_text, font, wrap

_PICTURE, _TILE, _GAP, _MARGIN = 236, 112, 8, 32
_TILES_BESIDE = 8
_OTHERS = 2
"""Words beside the chosen one that a tile names."""


def write_explanation_sheet(path: str | os.PathLike[str], looks: Sequence[Look], heading: str = "") -> None:
    """Draw pictures below each other, each with its caption, its references, a tile for every word, and the beams.

    A tile is the picture, dark where it had little to do with the word or spoke against it; the brightest place of each
    is where it had most.

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
    blocks = [block for look in looks for block in _draw_look(look, width - 2 * _MARGIN)]
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


def _draw_look(look: Look, width: int) -> list[Image.Image]:
    picture = Image.fromarray(look.image).resize((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
    right = width - _PICTURE - _GAP
    explanation = look.explanation
    texts = [Text(one_line(explanation.caption) or "(empty caption)", 18, INK, max_lines=2, bold=True)]
    texts += [Text(one_line(look.name), 13, GREY, max_lines=1)] if look.name else []
    texts += [Text(reference, 13, GREY, max_lines=1) for reference in look.references[:3]]
    drawn = [draw_text(text, right) for text in texts]
    top = sum(block.height for block in drawn) + _GAP
    tile = _TILE if explanation.heat is not None else 0
    pitch = tile + 24 + 15 * _OTHERS
    lines = -(-len(explanation.words) // _TILES_BESIDE)
    block = Image.new("RGB", (width, max(_PICTURE, top + lines * pitch)), PAPER)
    block.paste(picture, (0, 0))
    offset = 0
    for text in drawn:
        block.paste(text, (_PICTURE + _GAP, offset))
        offset += text.height
    small = np.asarray(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS))
    brightness = explanation.brightness
    for i, word in enumerate(explanation.words):
        x = _PICTURE + _GAP + i % _TILES_BESIDE * (_TILE + _GAP)
        y = top + i // _TILES_BESIDE * pitch
        if brightness is not None:
            block.paste(_light(small, brightness[i]), (x, y))
        _write_word(ImageDraw.Draw(block), x, y + tile + 2, word)
    if not look.branches:
        return [block]
    about = draw_text(Text(f"The beams: {described(look.branches)}.", 13, GREY, max_lines=1), width)
    return [block, about, draw_tree(look.branches, width)]


def _write_word(draw: ImageDraw.ImageDraw, x: int, y: int, word: ExplainedWord) -> None:
    others = [other for other in word.likely if other.text != word.text][:_OTHERS]
    for i, (text, probability) in enumerate([(word.text, word.probability), *others]):
        chosen, share = font(11 if i else 13, bold=not i), told(100 * probability)
        room = _TILE - int(font(11).getlength(share)) - 6
        (line,) = wrap(text, chosen, room, 1) or [""]
        draw.text((x, y + (20 + 15 * (i - 1) if i else 0)), line, GREY if i else INK, chosen)
        draw.text((x + chosen.getlength(line) + 5, y + (20 + 15 * (i - 1) if i else 2)), share, GREY, font(11))


def _light(image: UInt8[np.ndarray, "S S 3"], brightness: Float[np.ndarray, "side side"]) -> Image.Image:
    """Darken a picture where the brightness is low."""
    smooth = Image.fromarray(brightness.astype(np.float32)).resize(image.shape[:2], Image.Resampling.BICUBIC)
    share = 0.15 + 0.85 * np.clip(np.asarray(smooth), 0.0, 1.0)
    return Image.fromarray((image * share[:, :, None]).astype(np.uint8))
