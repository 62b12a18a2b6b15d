"""Contact sheets as PNG: pictures in columns, texts below each. One shows captions, another what an encoder sees."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.images import small_picture
from capjax.report.contents import RANKED_BY, CaptionRow, is_number, one_line
from capjax.report.text_blocks import GREY, INK, PAPER, Text, draw_text, font

_GAP, _MARGIN, _SPACE = 24, 32, 7
_WIDTH, _HEIGHT = 330, 250
"""Of the mat that a picture of any shape lies on."""
_SQUARE = 300
_MAT = "#eceef2"
_GOOD, _FAIR, _POOR = "#00795a", "#a86400", "#c23b00"
_VERDICTS = {"right": _GOOD, "partly": _FAIR, "wrong": _POOR}
_MAX_CAPTIONS = 5
_MAX_NAME = 38


@dataclass(frozen=True)
class Example:
    """An image as an encoder gets it, with the captions that people wrote.

    Attributes:
      image: pixels after preprocessing, uint8 [S, S, 3].
      file_name: where the image came from.
      captions: of the image.
    """

    image: UInt8[np.ndarray, "S S 3"]
    file_name: str
    captions: Sequence[str]


@dataclass(frozen=True)
class _Cell:
    """A picture and the texts below it."""

    picture: Image.Image
    texts: Sequence[Text]


def write_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[CaptionRow],
    columns: int = 4,
    heading: str = "",
) -> None:
    """Write `draw_sheet` as PNG.

    Raises:
      CapjaxError: as it does, or the file cannot be written.
    """
    _write(path, draw_sheet(rows, columns, heading))


def draw_sheet(
    rows: Sequence[CaptionRow],
    columns: int = 4,
    heading: str = "",
    num_references: int = 2,
) -> Image.Image:
    """Draw rows as a sheet: picture, mark, generated caption in bold, references in grey.

    The mark is the row's verdict or, without one, its CIDEr-D (× 100) in one of three colours, with a legend
    at the foot. Use `spread` to choose rows so that failures show.

    Args:
      rows: what to show, in this order; a few dozen at most make a sheet that can be read.
      columns: pictures beside each other.
      heading: what this is and how the captions were decoded, printed on top.
      num_references: references below each caption, at most.

    Raises:
      CapjaxError: there are no rows, or `columns` is not positive.
    """
    cells = []
    for row in rows:
        mark, colour = _mark(row)
        texts = [Text(f"■ {mark}", 13, colour, max_lines=1, bold=True)] if mark else []
        texts.append(Text(one_line(row.caption) or "(empty caption)", 18, INK, max_lines=6, bold=True))
        texts += [Text(reference, 14, GREY, max_lines=4) for reference in row.references[:num_references]]
        cells.append(_Cell(_on_mat(row), texts))
    legend = [(_GOOD, "100 or more"), (_FAIR, "50 to 100"), (_POOR, f"under 50 in {RANKED_BY} × 100")]
    needs_legend = any(_mark(row)[0] and not row.verdict for row in rows)
    return _draw(cells, columns, heading, legend if needs_legend else ())


def write_examples(
    path: str | os.PathLike[str], examples: Sequence[Example], columns: int = 4, heading: str = ""
) -> None:
    """Draw what an encoder gets to see, with the captions that belong to it.

    Args:
      path: PNG to write.
      examples: what to show, in this order; of many captions the first few.
      columns: pictures beside each other.
      heading: what this is, printed on top.

    Raises:
      CapjaxError: there are no examples, `columns` is not positive, or the file cannot be written.
    """
    cells = []
    for example in examples:
        name, captions = one_line(example.file_name), list(example.captions[:_MAX_CAPTIONS])
        if more := len(example.captions) - len(captions):
            captions.append(f"and {more} more")
        # The end of a name tells more than its folders.
        texts = [Text(name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}", 12, GREY, max_lines=1)]
        texts += [Text(caption, 14, INK, max_lines=3, bar=True) for caption in captions]
        cells.append(_Cell(_enlarged(example.image), texts))
    _write(path, _draw(cells, columns, heading))


def _write(path: str | os.PathLike[str], sheet: Image.Image) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _draw(cells: Sequence[_Cell], columns: int, heading: str, legend: Sequence[tuple[str, str]] = ()) -> Image.Image:
    """Draw cells, whose pictures are of one width, in columns below a heading and above a legend of coloured words."""
    if not cells or columns < 1:
        raise CapjaxError(f"expected pictures and at least one column for a sheet, got {len(cells)} and {columns}")
    columns, pitch = min(columns, len(cells)), cells[0].picture.width + _GAP
    width = 2 * _MARGIN + columns * pitch - _GAP
    drawn = [_draw_cell(cell) for cell in cells]
    lines = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    title = Text(heading, 21, INK, max_lines=4, bold=True)
    top = draw_text(title, width - 2 * _MARGIN) if one_line(heading) else None
    offset = _MARGIN + (top.height + _GAP if top else 0)
    below = offset + sum(heights) + len(lines) * _GAP
    sheet = Image.new("RGB", (width, below + (_MARGIN + 10 if legend else 0)), PAPER)
    if top:
        sheet.paste(top, (_MARGIN, _MARGIN))
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (_MARGIN + column * pitch, offset))
        offset += height + _GAP
    draw, place = ImageDraw.Draw(sheet), _MARGIN
    for colour, words in legend:
        draw.text((place, below - 4), f"■ {words}", colour, font(13))
        place += round(font(13).getlength(f"■ {words}")) + _GAP
    return sheet


def _draw_cell(cell: _Cell) -> Image.Image:
    """Draw a picture with its texts below one another."""
    blocks = [cell.picture, *(draw_text(text, cell.picture.width) for text in cell.texts)]
    height = sum(block.height for block in blocks) + _SPACE * (len(blocks) - 1)
    drawn, offset = Image.new("RGB", (cell.picture.width, height), PAPER), 0
    for block in blocks:
        drawn.paste(block, (0, offset))
        offset += block.height + _SPACE
    return drawn


def _mark(row: CaptionRow) -> tuple[str, str]:
    """Return the words and the colour that say how good a caption is."""
    score = row.scores.get(RANKED_BY)
    scored = f"{RANKED_BY} × 100: {100 * score:.0f}" if is_number(score) else ""
    if row.verdict:
        words = one_line(row.verdict)
        return (f"{words} · {scored}" if scored else words), _VERDICTS.get(row.verdict, GREY)
    if not scored:
        return "", GREY
    return scored, _POOR if score < 0.5 else _FAIR if score < 1.0 else _GOOD


def _on_mat(row: CaptionRow) -> Image.Image:
    """Return the whole picture on a mat of fixed size, or the mat with a word where there is no picture."""
    mat = Image.new("RGB", (_WIDTH, _HEIGHT), _MAT)
    picture, word = None, "no picture"
    try:
        data = row.picture()
        picture = None if data is None else small_picture(data, 2 * _WIDTH)
    except CapjaxError:
        word = "unreadable picture"
    if picture is None:
        ImageDraw.Draw(mat).text((_WIDTH / 2, _HEIGHT / 2), word, GREY, font(14), anchor="mm")
        return mat
    scale = min(_WIDTH / picture.width, _HEIGHT / picture.height)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    mat.paste(picture, ((_WIDTH - size[0]) // 2, (_HEIGHT - size[1]) // 2))
    return mat


def _enlarged(image: UInt8[np.ndarray, "S S 3"]) -> Image.Image:
    """Bring pixels to the size of a cell; enlarged without smoothing, so that those are seen which the encoder sees."""
    picture = Image.fromarray(image)
    resampling = Image.Resampling.LANCZOS if picture.width >= _SQUARE else Image.Resampling.NEAREST
    return picture.resize((_SQUARE, _SQUARE), resampling)
