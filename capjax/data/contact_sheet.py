"""A sheet of examples of a dataset: each image as the encoder gets it, with its captions below."""

import io
import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from capjax.types import CaptionRecord

_COLUMN = 300
_GAP = 28
_MARGIN = 36
_LINE = 19
_INDENT = 11
_TEXT_WIDTH = _COLUMN - _INDENT
_MAX_CAPTIONS = 5
_MAX_LINES_PER_CAPTION = 3
_INK, _GREY, _ACCENT, _PAPER = "#1b1f27", "#7b828e", "#b8bec8", "#ffffff"


def draw_contact_sheet(
    title: str, examples: Sequence[tuple[CaptionRecord, UInt8[np.ndarray, "S S 3"]]], num_columns: int = 4
) -> Image.Image:
    """Draw examples in rows, captions wrapped below each image.

    Args:
        title: printed on top.
        examples: records with their preprocessed images, uint8 [S, S, 3].
        num_columns: images beside each other, at most.
    """
    columns = min(num_columns, len(examples))
    rows = [examples[start : start + columns] for start in range(0, len(examples), columns)]
    font = _font(14)
    texts = [[_wrap(record, font) for record, _ in row] for row in rows]
    text_heights = [max(sum(map(len, captions)) * _LINE + 6 * len(captions) for captions in row) for row in texts]
    heights = [_COLUMN + 30 + height + _GAP for height in text_heights]
    width = 2 * _MARGIN + columns * _COLUMN + (columns - 1) * _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + 34 + sum(heights) - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 8), title, _INK, _font(19, bold=True))
    top = _MARGIN + 34
    for row, row_texts, height in zip(rows, texts, heights, strict=True):
        for column, ((record, image), captions) in enumerate(zip(row, row_texts, strict=True)):
            left = _MARGIN + column * (_COLUMN + _GAP)
            picture = Image.fromarray(image)
            # Small pictures are enlarged without smoothing: the sheet shows the pixels that the encoder sees.
            filter_ = Image.Resampling.LANCZOS if picture.width >= _COLUMN else Image.Resampling.NEAREST
            sheet.paste(picture.resize((_COLUMN, _COLUMN), filter_), (left, top))
            draw.text((left, top + _COLUMN + 7), _shorten(record.file_name), _GREY, _font(12))
            at = top + _COLUMN + 30
            for lines in captions:
                draw.rectangle((left, at + 3, left + 2, at + len(lines) * _LINE - 3), _ACCENT)
                for line in lines:
                    draw.text((left + _INDENT, at), line, _INK, font)
                    at += _LINE
                at += 6
        top += height
    return sheet


def save_png(image: Image.Image, path: pathlib.Path) -> None:
    """Write an image as PNG, whole or not at all.

    Raises:
        OSError: if that fails.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def _wrap(record: CaptionRecord, font: ImageFont.FreeTypeFont) -> list[list[str]]:
    captions = [_wrap_caption(caption, font) for caption in record.captions[:_MAX_CAPTIONS]]
    if len(record.captions) > _MAX_CAPTIONS:
        captions.append([f"and {len(record.captions) - _MAX_CAPTIONS} more"])
    return captions


def _wrap_caption(caption: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a caption by its drawn width; a word too long for a line, or a script without spaces, is cut."""
    lines = [""]
    # A line holds fewer than 100 letters, so no more is ever shown of a caption.
    for word in caption[: 100 * _MAX_LINES_PER_CAPTION].split():
        for piece in [word] if font.getlength(word) <= _TEXT_WIDTH else word:
            space = " " if lines[-1] and piece is word else ""
            if font.getlength(lines[-1] + space + piece) <= _TEXT_WIDTH:
                lines[-1] += space + piece
            else:
                lines.append(piece)
    lines = [line for line in lines if line] or [""]
    if len(lines) > _MAX_LINES_PER_CAPTION:
        lines = lines[:_MAX_LINES_PER_CAPTION]
        while font.getlength(lines[-1] + " …") > _TEXT_WIDTH:
            lines[-1] = lines[-1][:-1].rstrip()
        lines[-1] += " …"
    return lines


def _shorten(name: str) -> str:
    return name if len(name) <= 38 else "…" + name[-37:]


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # DejaVu Sans comes with matplotlib and covers more scripts than Pillow's own font.
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)
