"""Text drawn into pictures: wrapped, cut with an ellipsis, in the colours of the sheets."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from capjax.report.contents import one_line

INK, GREY, PAPER = "#16191f", "#666c78", "#ffffff"
_BAR, _INDENT = "#b8bec8", 11
_MAX_CHARACTERS = 600
"""No line limit shows more than this; measuring the rest of a very long caption would only take time."""


@dataclass(frozen=True)
class Text:
    """A block of text: wrapped, and ending in an ellipsis after `max_lines`; a bar beside it tells equal ones apart."""

    words: str
    size: int
    colour: str
    max_lines: int
    bold: bool = False
    bar: bool = False


def draw_text(text: Text, width: int) -> Image.Image:
    """Draw a block of text `width` pixels wide."""
    chosen, indent = font(text.size, text.bold), _INDENT if text.bar else 0
    lines = wrap(text.words, chosen, width - indent, text.max_lines)
    pitch = round(1.3 * text.size)
    block = Image.new("RGB", (width, pitch * len(lines)), PAPER)
    draw = ImageDraw.Draw(block)
    if text.bar and lines:
        draw.rectangle((0, 2, 2, block.height - 3), _BAR)
    for index, line in enumerate(lines):
        draw.text((indent, index * pitch), line, text.colour, chosen)
    return block


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Break text into at most `max_lines` lines of at most `width` pixels; words wider than a line are cut."""
    text = one_line(text)
    shortened = len(text) > _MAX_CHARACTERS
    lines, line = [], ""
    for word in text[:_MAX_CHARACTERS].split(" "):
        if font.getlength(f"{line} {word}".strip()) <= width:
            line = f"{line} {word}".strip()
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            fitting = next((end for end in range(len(word) - 1, 1, -1) if font.getlength(word[:end]) <= width), 1)
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    if line:
        lines.append(line)
    if len(lines) > max_lines or shortened:
        lines = lines[:max_lines]
        while lines[-1] and font.getlength(f"{lines[-1]}…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = f"{lines[-1].rstrip()}…"
    return lines


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which comes with matplotlib and covers Latin, Greek, Cyrillic and more on every machine."""
    from matplotlib import get_data_path  # late, for the same reason as in curves.py

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)
