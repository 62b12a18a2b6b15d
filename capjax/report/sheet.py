"""The contact sheet: pictures with the generated caption, references and a mark for how good it is, as one PNG."""

import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from capjax.disk import write_atomically
from capjax.errors import CapjaxError
from capjax.report.contents import CaptionRow, is_number, one_line, open_picture

_CELL, _PICTURE, _GAP, _MARGIN = 330, 250, 24, 32
_INK, _GREY, _PAPER, _MAT = "#16191f", "#666c78", "#ffffff", "#eceef2"
_GOOD, _FAIR, _POOR = "#00795a", "#a86400", "#c23b00"
_VERDICTS = {"right": _GOOD, "partly": _FAIR, "wrong": _POOR}
_MAX_CHARACTERS = 600
"""No line limit shows more than this; measuring the rest of a very long caption would only take time."""


def write_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[CaptionRow],
    columns: int = 4,
    heading: str = "",
    metric: str = "CIDEr-D",
    num_references: int = 2,
) -> None:
    """Draw rows as a sheet: picture, mark, generated caption in bold, references in grey.

    The mark is the row's verdict or, without one, its score in `metric` (× 100) in one of three colours, with a legend
    at the foot. Use `spread` to choose rows so that failures show.

    Args:
      path: PNG to write.
      rows: what to show, in this order; a few dozen at most make a sheet that can be read.
      columns: pictures beside each other.
      heading: what this is and how the captions were decoded, printed on top.
      metric: the score to print.
      num_references: references below each caption, at most.

    Raises:
      CapjaxError: there are no rows, `columns` is not positive, or the file cannot be written.
    """
    if not rows or columns < 1:
        raise CapjaxError(f"expected rows and at least one column for a sheet, got {len(rows)} rows, {columns} columns")
    columns = min(columns, len(rows))
    cells = [_cell(row, metric, num_references) for row in rows]
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    legend = any(_mark(row, metric)[0] and not row.verdict for row in rows)
    top = _text_block(heading, _font(21, bold=True), _INK, width - 2 * _MARGIN, 4) if one_line(heading) else None
    offset = _MARGIN + (top.height + _GAP if top else 0)
    heights = [max(cell.height for cell in line) for line in lines]
    below = sum(heights) + len(lines) * _GAP + offset
    sheet = Image.new("RGB", (width, below + (_MARGIN + 10 if legend else 0)), _PAPER)
    if top:
        sheet.paste(top, (_MARGIN, _MARGIN))
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (_MARGIN + column * (_CELL + _GAP), offset))
        offset += height + _GAP
    if legend:
        draw, place = ImageDraw.Draw(sheet), _MARGIN
        for colour, words in ((_GOOD, "100 or more"), (_FAIR, "50 to 100"), (_POOR, f"under 50 in {metric} × 100")):
            draw.text((place, below - 4), f"■ {words}", colour, _font(13))
            place += round(_font(13).getlength(f"■ {words}")) + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _cell(row: CaptionRow, metric: str, num_references: int) -> Image.Image:
    """Draw one row: picture above mark above caption above references."""
    blocks = [_picture(row.image)]
    mark, colour = _mark(row, metric)
    if mark:
        blocks.append(_text_block(f"■ {mark}", _font(13, bold=True), colour, _CELL, 1))
    blocks.append(_text_block(one_line(row.caption) or "(empty caption)", _font(18, bold=True), _INK, _CELL, 6))
    for reference in row.references[:num_references]:
        blocks.append(_text_block(reference, _font(14), _GREY, _CELL, 4))
    cell = Image.new("RGB", (_CELL, sum(block.height for block in blocks) + 7 * (len(blocks) - 1)), _PAPER)
    offset = 0
    for block in blocks:
        cell.paste(block, (0, offset))
        offset += block.height + 7
    return cell


def _mark(row: CaptionRow, metric: str) -> tuple[str, str]:
    """Return the words and the colour that say how good a caption is."""
    score = row.scores.get(metric)
    scored = f"{metric} × 100: {100 * score:.0f}" if is_number(score) else ""
    if row.verdict:
        words = one_line(row.verdict)
        return (f"{words} · {scored}" if scored else words), _VERDICTS.get(row.verdict, _GREY)
    if not scored:
        return "", _GREY
    return scored, _POOR if score < 0.5 else _FAIR if score < 1.0 else _GOOD


def _picture(data: bytes | None) -> Image.Image:
    """Return the whole picture on a mat of fixed size, or the mat with a word where there is no picture."""
    mat = Image.new("RGB", (_CELL, _PICTURE), _MAT)
    try:
        if data is None:
            raise CapjaxError("no picture")
        picture = open_picture(data, 2 * _CELL)
    except CapjaxError:
        word = "no picture" if data is None else "unreadable picture"
        font = _font(14)
        ImageDraw.Draw(mat).text((_CELL / 2, _PICTURE / 2), word, _GREY, font, anchor="mm")
        return mat
    scale = min(_CELL / picture.width, _PICTURE / picture.height)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    mat.paste(picture, ((_CELL - size[0]) // 2, (_PICTURE - size[1]) // 2))
    return mat


def _text_block(text: str, font: ImageFont.FreeTypeFont, colour: str, width: int, max_lines: int) -> Image.Image:
    """Draw text wrapped to `width` pixels, ending in an ellipsis after `max_lines`."""
    lines = wrap(text, font, width, max_lines)
    height = round(1.3 * font.size)
    block = Image.new("RGB", (width, height * len(lines)), _PAPER)
    draw = ImageDraw.Draw(block)
    for index, line in enumerate(lines):
        draw.text((0, index * height), line, colour, font)
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
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which comes with matplotlib and covers Latin, Greek, Cyrillic and more on every machine."""
    from matplotlib import get_data_path  # late, for the same reason as in curves.py

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)
