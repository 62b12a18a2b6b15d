"""Caption files of every layout, read into one shape: COCO JSON, tables, JSON Lines, Flickr token files.

Readers survive bad rows, note them in `Findings`, and raise only when a file as a whole makes no sense.
"""

import csv
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from capjax.data.caption_text import decode_text, text_lines
from capjax.data.findings import Findings
from capjax.errors import CapjaxError
from capjax.images import is_image_name

_MOST_LINES = 100  # of a cell

_IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "image_name", "image_path", "path")
_CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "sentence", "description")
_ID_COLUMNS = ("image_id", "id")
_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
_BLANKS = " \t\r\n"


@dataclass
class CaptionedFile:
    """An image file with its captions as written.

    Attributes:
        file_name: as the caption file names it.
        captions: raw texts.
        image_id: if the caption file has one.
        split: if the caption file has one.
    """

    file_name: str
    captions: list[str] = field(default_factory=list)
    image_id: int | None = None
    split: str | None = None


def read_captions(path: pathlib.Path, found: Findings) -> list[CaptionedFile]:
    """Read a caption file of any layout, told by its name: .json, .jsonl, .csv, .tsv, .txt, .token.

    Raises:
        CapjaxError: if the file is missing, empty or of no known layout.
    """
    data = read_bytes(path)
    match path.suffix.lower():
        case ".json":
            return parse_coco_json(data, path.name, found)
        case ".jsonl" | ".ndjson":
            return parse_json_lines(data, path.name, found)
        case ".csv" | ".tsv" | ".txt":
            return parse_table(data, path.name, found)
        case ".token":
            return parse_tokens(data, path.name, found)
        case suffix:
            raise CapjaxError(f"expected captions in a .csv, .tsv, .txt, .jsonl or .json file, got {suffix!r} ({path})")


def read_bytes(path: pathlib.Path) -> bytes:
    """Read a file.

    Raises:
        CapjaxError: if that fails.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CapjaxError(f"expected a readable file at {path}, got: {error.strerror}") from None


def parse_coco_json(data: bytes, name: str, found: Findings) -> list[CaptionedFile]:
    """Read the COCO layout: `images` with id and file_name, `annotations` with image_id and caption.

    A plain list of objects, as in JSON Lines, is read too.

    Raises:
        CapjaxError: if it is neither.
    """
    try:
        content = json.loads(decode_text(data, name, found))
    except (ValueError, RecursionError) as error:
        raise CapjaxError(f"expected JSON in {name}, got something else ({error})") from None
    if isinstance(content, list):
        return group_by_name(_rows_of_objects(enumerate(content, 1), name, found), found)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CapjaxError(f"expected the COCO captions layout (images and annotations) in {name}, got {keys}")
    by_id: dict[str, CaptionedFile] = {}
    for i, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not image.get("file_name") or image.get("id") is None:
            found.add("malformed row", f"{name}, image {i}", "no id or file_name")
            continue
        file = CaptionedFile(str(image["file_name"]), [], as_id(image["id"]), _as_text(image.get("split")))
        if (known := by_id.setdefault(_id_key(image["id"]), file)).file_name != file.file_name:
            found.add("malformed row", f"{name}, image {i}", f"id {image['id']} is that of {known.file_name}")
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("caption"), str):
            found.add("malformed row", f"{name}, annotation {i}", "no caption")
        elif (image_id := _id_key(annotation.get("image_id"))) not in by_id:
            found.add("caption without image", f"image id {image_id}", f"not among the images of {name}")
        else:
            by_id[image_id].captions.append(annotation["caption"])
    return group_by_name(by_id.values(), found)


def parse_json_lines(data: bytes, name: str, found: Findings) -> list[CaptionedFile]:
    """Read one JSON object a line: file_name (or image), caption or a list captions, optionally split and image_id.

    Raises:
        CapjaxError: if no line can be read.
    """

    def objects() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(text_lines(decode_text(data, name, found)), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    found.add("malformed row", f"{name}, line {number}", "not JSON")

    files = group_by_name(_rows_of_objects(objects(), name, found), found)
    return _require(files, name, 'objects such as {"file_name", "caption"}')


def _rows_of_objects(objects: Iterable[tuple[int, Any]], name: str, found: Findings) -> Iterator[CaptionedFile]:
    for number, row in objects:
        if not isinstance(row, dict):
            found.add("malformed row", f"{name}, line {number}", "not an object")
            continue
        file_name = _first(row, _IMAGE_COLUMNS)
        captions = _first(row, _CAPTION_COLUMNS)
        captions = [captions] if isinstance(captions, str) else captions
        if not file_name or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            found.add("malformed row", f"{name}, line {number}", "no file_name with a caption")
            continue
        yield CaptionedFile(str(file_name), captions, as_id(_first(row, _ID_COLUMNS)), _as_text(row.get("split")))


def parse_table(data: bytes, name: str, found: Findings) -> list[CaptionedFile]:
    """Read a table with a header: an image column, a caption column, optionally split and image_id.

    Columns are separated by comma, semicolon, tab or, as in Kaggle's Flickr30k, `|`. A caption in the last column may
    contain the separator unquoted.

    Raises:
        CapjaxError: if the header lacks the columns, or no row can be read.
    """
    text = decode_text(data, name, found)
    # Blanks at the end of a line would stand between a quotation mark and the end of its cell.
    lines = [line.rstrip(" \r\n") + "\n" for line in io.StringIO(text, newline="")]
    header_line = lines[0] if lines else ""
    if "\0" in header_line:
        raise CapjaxError(f"expected a text table in {name}, got binary data")
    delimiter = max("|\t;,", key=header_line.count)
    try:
        header = [
            column.strip().lower()
            for column in next(csv.reader(lines[:1], delimiter=delimiter, skipinitialspace=delimiter != "\t"), [])
        ]
    except csv.Error as error:
        raise CapjaxError(f"expected a table in {name}, its header cannot be read: {error}") from None
    columns = {
        "image": _column(header, _IMAGE_COLUMNS),
        "caption": _column(header, _CAPTION_COLUMNS),
        "split": _column(header, ("split",)),
        "id": _column(header, _ID_COLUMNS),
    }
    if columns["image"] is None or columns["caption"] is None:
        raise CapjaxError(
            f"expected a header with an image and a caption column in {name} (such as image,caption), "
            f"got {header_line.strip()[:80]!r}"
        )
    rows = _split_lines(lines, delimiter, len(header), columns["image"])
    next(rows, None)  # the header
    files = group_by_name(_rows_of_table(rows, header, columns, delimiter, name, found), found)
    return _require(files, name, "rows below the header")


def _split_lines(
    lines: list[str], delimiter: str, num_columns: int, image_column: int
) -> Iterator[tuple[int, list[str]]]:
    """Split the lines of a table into cells; give each row with the number of its last line.

    A quotation mark at the start of a caption may be one of its characters. Where what it encloses is no cell, or has
    the name of an image where every line has it, the cell ends with its line.
    """
    cell = re.compile(rf'(?:"((?:[^"]|"")*)"[^\S{delimiter}]*|([^{delimiter}]*)){re.escape(delimiter)}')
    start = 0
    while start < len(lines):
        row, num_lines = _first_row(lines, start, delimiter)
        if '"' in lines[start] and (row is None or any(text.lstrip().startswith('"') for text in row)):
            # Blanks may stand before a quotation mark; those within a caption that is not quoted belong to it.
            unlike, num_unlike = _first_row(lines, start, delimiter, skip_blanks=True)
            if unlike is not None and len(unlike) == num_columns:
                row, num_lines = unlike, num_unlike
        end = start + num_lines
        runs_on = end > start + 1 and all(_names_an_image(line, delimiter, image_column) for line in lines[start:end])
        if row is None or runs_on:
            end = start + 1
            found = cell.findall(lines[start].removesuffix("\n") + delimiter)
            row = [quoted.replace('""', '"') or plain for quoted, plain in found]
        yield end, row
        start = end


def _first_row(lines: list[str], start: int, delimiter: str, skip_blanks: bool = False) -> tuple[list[str] | None, int]:
    """Read the row that begins in a line; return its cells, None if they cannot be told, and its number of lines."""
    quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
    rest = map(lines.__getitem__, range(start, min(start + _MOST_LINES, len(lines))))
    reader = csv.reader(rest, delimiter=delimiter, quoting=quoting, skipinitialspace=skip_blanks, strict=True)
    try:
        row = next(reader)
    except csv.Error:
        row = None
    return row, reader.line_num


def _names_an_image(line: str, delimiter: str, column: int) -> bool:
    cells = line.split(delimiter)
    return column < len(cells) and is_image_name(_without_number(cells[column].strip(_BLANKS)))


def _without_number(file_name: str) -> str:
    """Take off the number of the caption that Flickr's tokens carry behind the file name."""
    return re.sub(r"#\d+$", "", file_name)


def _rows_of_table(
    rows: Iterable[tuple[int, list[str]]],
    header: list[str],
    columns: dict[str, int | None],
    delimiter: str,
    name: str,
    found: Findings,
) -> Iterator[CaptionedFile]:
    for number, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(header) and columns["caption"] == len(header) - 1:
            row[len(header) - 1 :] = [delimiter.join(row[len(header) - 1 :])]
        if len(row) != len(header):
            found.add("malformed row", f"{name}, line {number}", f"{len(row)} of {len(header)} columns")
            continue
        cells = {key: row[at].strip(_BLANKS) if at is not None else None for key, at in columns.items()}
        file_name = _without_number(cells["image"] or "")
        if not file_name:
            found.add("malformed row", f"{name}, line {number}", "no file name")
            continue
        yield CaptionedFile(file_name, [cells["caption"] or ""], as_id(cells["id"]), cells["split"] or None)


def parse_tokens(data: bytes, name: str, found: Findings) -> list[CaptionedFile]:
    """Read the official Flickr layout: `photo.jpg#0<tab>caption` a line.

    Raises:
        CapjaxError: if no line can be read.
    """

    def rows() -> Iterator[CaptionedFile]:
        for number, line in enumerate(text_lines(decode_text(data, name, found)), 1):
            match = re.fullmatch(r"(.+?)#\d+\t(.*)", line)
            if match:
                yield CaptionedFile(match[1].strip(_BLANKS), [match[2]])
            elif line.strip():
                found.add("malformed row", f"{name}, line {number}")

    return _require(group_by_name(rows(), found), name, "lines such as photo.jpg#0<tab>caption")


def split_named(name: str) -> str | None:
    """Return train, val or test, by which of their names a split goes; None if by none."""
    return _SPLITS.get(name.strip().lower())


def group_by_name(rows: Iterable[CaptionedFile], found: Findings) -> list[CaptionedFile]:
    """Join the captions of the same file, in order of first appearance; it belongs to the first split that is named."""
    files: dict[str, CaptionedFile] = {}
    for row in rows:
        known = files.setdefault(row.file_name, row)
        if known is not row:
            if known.split and row.split and split_named(known.split) != split_named(row.split):
                found.add("several splits", row.file_name, f"{row.split}, first {known.split}")
            known.captions.extend(row.captions)
            known.split = known.split or row.split
    return list(files.values())


def _require(files: list[CaptionedFile], name: str, expected: str) -> list[CaptionedFile]:
    if not files:
        raise CapjaxError(f"expected {expected} in {name}, found none")
    return files


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def as_id(value: Any) -> int | None:
    """Turn what a file gives as the id of an image into one that 64 bits hold; None if it is none.

    A column of whole numbers with a gap is written as "7.0" by some programs.
    """
    if isinstance(value, float) and not value.is_integer():
        return None
    try:
        if isinstance(value, str):
            value = re.sub(r"\.0+$", "", value.strip())
        image_id = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return image_id if -(2**63) <= image_id < 2**63 else None


def _id_key(value: Any) -> str:
    """Write an id as it is compared: some programs write whole numbers as texts, others as 1.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _as_text(value: Any) -> str | None:
    return str(value) if value else None
