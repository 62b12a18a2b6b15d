"""The contact sheets show every row, wrap any text and mark failures."""

import io
import pathlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from capjax.errors import CapjaxError
from capjax.report import CaptionRow, Example, write_examples, write_sheet
from capjax.report.text_blocks import font, wrap


def picture(colour: str, size: tuple[int, int] = (300, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def holds(area: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((area == colour).all(axis=-1).any())


def test_pictures_stand_in_order(tmp_path: pathlib.Path) -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    rows = [CaptionRow(index, "f", picture(colour), "a colour") for index, colour in enumerate(colours)]
    write_sheet(tmp_path / "sheet.png", rows, columns=2, heading="greedy decoding")
    sheet = pixels(tmp_path / "sheet.png")
    middles = []
    for name in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)):
        y, x = np.nonzero((sheet == name).all(axis=-1))
        middles.append((x.mean() > sheet.shape[1] / 2, y.mean()))
    assert [right for right, _ in middles] == [False, True, False, True, False]
    heights = [height for _, height in middles]
    assert heights[0] == heights[1] < heights[2] == heights[3] < heights[4]


@pytest.mark.parametrize(
    ("verdict", "score", "colour"),
    [
        ("right", 0.0, (0x00, 0x79, 0x5A)),
        ("wrong", 2.0, (0xC2, 0x3B, 0x00)),
        (None, 1.2, (0x00, 0x79, 0x5A)),
        (None, 0.7, (0xA8, 0x64, 0x00)),
        (None, 0.1, (0xC2, 0x3B, 0x00)),
    ],
)
def test_the_mark_says_how_good(tmp_path: pathlib.Path, verdict: str | None, score: float, colour: tuple) -> None:
    row = CaptionRow(1, "f", picture("white"), "a dog", ("a cat",), scores={"CIDEr-D": score}, verdict=verdict)
    write_sheet(tmp_path / "sheet.png", [row])
    without_legend = pixels(tmp_path / "sheet.png")[:-70] if verdict is None else pixels(tmp_path / "sheet.png")
    shown = {
        name for name in ((0x00, 0x79, 0x5A), (0xA8, 0x64, 0x00), (0xC2, 0x3B, 0x00)) if holds(without_legend, name)
    }
    assert shown == {colour}


def test_rows_without_picture_caption_or_end_are_drawn(tmp_path: pathlib.Path) -> None:
    rows = [
        CaptionRow(1, "none", None, "", ("", "x" * 10_000)),
        CaptionRow(2, "broken", b"broken", "word " * 5_000, scores={"CIDEr-D": float("nan")}),
        CaptionRow(3, "tall", picture("red", (1, 900)), "日本語 🐕 שלום \ud800\n\x00", verdict="a long verdict " * 20),
    ]
    write_sheet(tmp_path / "sheet.png", rows, columns=9, heading="h" * 3_000)
    assert pixels(tmp_path / "sheet.png").shape[0] < 1_000


@pytest.mark.parametrize(("rows", "columns"), [([], 4), ([CaptionRow(1, "f", None, "a")], 0)])
def test_nothing_to_draw_is_one_clear_error(tmp_path: pathlib.Path, rows: list[CaptionRow], columns: int) -> None:
    with pytest.raises(CapjaxError, match="expected pictures and at least one column"):
        write_sheet(tmp_path / "sheet.png", rows, columns=columns)


@settings(max_examples=100, deadline=None)
@example("a" + "0123456789" * 30, 8)
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(1, 8))
def test_wrapped_lines_fit_and_lose_nothing_unsaid(text: str, max_lines: int) -> None:
    chosen = font(14)
    lines = wrap(text, chosen, 200, max_lines)
    assert len(lines) <= max_lines
    assert all(chosen.getlength(line) <= 200 for line in lines)
    everything = "".join(wrap(text, chosen, 200, 10_000)).replace(" ", "")
    assert everything == "".join(wrap(text, chosen, 10**9, 10)).replace(" ", "")
    shown = "".join(lines).replace(" ", "")
    assert shown == everything or (shown.endswith("…") and everything.startswith(shown[:-1]))


def test_examples_show_the_pixels_that_the_encoder_sees(tmp_path: pathlib.Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    captions = [f"caption {number} " * 9 for number in range(7)]
    examples = [Example(image, "a/very/long/name/" * 9 + "photo.jpg", captions[:count]) for count in (0, 1, 5, 7)]
    write_examples(tmp_path / "examples.png", examples, columns=2, heading="scenes, train")
    sheet = pixels(tmp_path / "examples.png")
    enlarged = image.repeat(10, 0).repeat(10, 1)
    lefts = [32, 32 + 300 + 24]
    tops = range(len(sheet) - 299)
    found = [(y, x) for x in lefts for y in tops if np.array_equal(sheet[y : y + 300, x : x + 300], enlarged)]
    assert len(found) == 4
    # The fifth caption is drawn, of further ones only their number.
    bars = (sheet == (0xB8, 0xBE, 0xC8)).all(axis=-1)
    counts = [int(np.diff(bars[top + 300 :, left + 1].astype(int)).clip(0).sum()) for top, left in sorted(found)]
    assert counts[2:] == [5, 6]


def test_examples_of_nothing_are_one_clear_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CapjaxError, match="expected pictures"):
        write_examples(tmp_path / "examples.png", [])
