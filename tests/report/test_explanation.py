"""How captions came about, drawn: trees by hand, the light on tiles where the heat is, pages that work in a browser."""

import io
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from capjax.errors import CapjaxError
from capjax.report import CaptionRow, Look, Report, write_explanation_page, write_explanation_sheet, write_page
from capjax.report.beam_tree import described, draw_tree, layout, told, tree_svg
from capjax.report.explanation import END, Branch, ExplainedWord, Explanation, LikelyWord, explained_json

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"'\u2028"
BRANCHES = [
    Branch("a", -1, np.log(0.5), True),
    Branch("two", -1, np.log(0.25)),
    Branch("dog", 0, np.log(0.1)),
    Branch("cat", 0, np.log(0.05), True),
    Branch("cats", 1, np.log(0.2)),
    Branch(END, 3, np.log(0.04), True, is_whole=True),
    Branch("runs", 2, np.log(0.03)),
]


def explanation(texts=("a", "cat"), heat=None, method="attention") -> Explanation:
    words = tuple(
        ExplainedWord(text, 0.5, (LikelyWord("dog", 0.7), LikelyWord(text, 0.3), LikelyWord("cow", 0.002)))
        for text in (*texts, END)
    )
    return Explanation(" ".join(texts), words, heat, method)


def corners() -> np.ndarray:
    """Return heat of three words: in the upper left, in the lower right, against the word everywhere."""
    heat = np.zeros((3, 4, 4), np.float32)
    heat[0, 0, 0], heat[1, 3, 3], heat[2] = 2.0, 0.3, -1.0
    return heat


def test_a_tree_by_hand() -> None:
    places = {(node.column, node.row): (node.text, round(node.percent)) for node in layout(BRANCHES)}
    assert places == {
        (0, 0): ("a", 50),
        (1, 0): ("cat", 10),  # of log 0.05 after log 0.5; chosen, and so before the likelier dog
        (2, 0): (END, 80),
        (1, 1): ("dog", 20),
        (2, 1): ("runs", 30),
        (0, 2): ("two", 25),
        (1, 2): ("cats", 80),
    }
    ended = "captions came to their end or to the greatest length"
    assert described(BRANCHES) == f"1 {ended}, 2 beginnings were dropped"
    assert described([*BRANCHES[:-1], BRANCHES[-1]._replace(is_whole=True)]) == f"2 {ended}, 1 beginnings were dropped"
    assert layout([]) == [] and tree_svg([]) == ""
    assert [told(percent) for percent in (0.2, 49.6, 100.0)] == ["<1 %", "50 %", "100 %"]


def test_a_tree_is_drawn_however_long_and_wide() -> None:
    long = [Branch("word" * 9, i - 1, -float(i)) for i in range(40)]
    assert draw_tree(long, 1196).size == (1196, 24)
    assert draw_tree(BRANCHES, 1196).size == (1196, 64)
    assert tree_svg(long).count("<text") == 40
    hostile = tree_svg([Branch(HOSTILE, -1, -1.0)])
    assert "<script" not in hostile and "<img" not in hostile


def test_tiles_are_lit_where_the_heat_is(tmp_path: pathlib.Path) -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    write_explanation_sheet(tmp_path / "a.png", [Look(white, explanation(heat=corners()))])
    with Image.open(tmp_path / "a.png") as image:
        sheet = np.asarray(image.convert("L"), np.float32)
    # The tiles are the dark squares of 112 pixels beside the picture; find them by what is not paper.
    columns = [276 + 120 * i for i in range(3)]
    top = int(np.argmax(sheet[60:, columns[2] + 50] < 100)) + 60
    quarters = []
    for x in columns:
        tile = sheet[top : top + 112, x : x + 112]
        quarters.append([tile[:56, :56].mean(), tile[:56, 56:].mean(), tile[56:, :56].mean(), tile[56:, 56:].mean()])
    assert np.argmax(quarters[0]) == 0 and np.argmax(quarters[1]) == 3
    assert np.ptp(quarters[2]) < 1 and np.mean(quarters[2]) < 60, "what speaks against a word is not lit"


def test_a_sheet_without_heat_or_beams_and_one_with_everything(tmp_path: pathlib.Path) -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    plain, full = (
        Look(white, explanation(method="")),
        Look(white, explanation(heat=corners()), BRANCHES, "a.jpg", ("b",)),
    )
    write_explanation_sheet(tmp_path / "plain.png", [plain])
    write_explanation_sheet(tmp_path / "full.png", [full, full], heading=HOSTILE)
    sizes = [Image.open(tmp_path / name).size for name in ("plain.png", "full.png")]
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 2 * sizes[0][1]
    with pytest.raises(CapjaxError, match="expected pictures"):
        write_explanation_sheet(tmp_path / "none.png", [])


def test_as_json() -> None:
    found = explained_json(explanation(heat=corners()), "center")
    assert found["heat_method"] == "attention" and found["crop"] == "center"
    assert found["words"][1]["text"] == "cat" and found["words"][1]["probability"] == 0.5
    assert found["words"][1]["likely"][0] == {"text": "dog", "probability": 0.7}
    assert found["words"][1]["heat"][3] == [0, 0, 0, 1] and np.sum(found["words"][2]["heat"]) == 0
    assert "heat" not in explained_json(explanation(method=""))["words"][0]
    diverged = explanation(heat=np.full((3, 4, 4), np.nan, np.float32))
    diverged = diverged._replace(words=tuple(word._replace(probability=np.nan) for word in diverged.words))
    for values in (found, explained_json(diverged)):
        json.dumps(values, allow_nan=False)


def light(page: Page, within: str = "") -> np.ndarray:
    """Return how much of the picture is seen, from the canvas that lies on it."""
    alpha = page.evaluate(
        """(within) => { const canvas = document.querySelector(within + ' canvas.light');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return [...data].filter((_, i) => i % 4 == 3); }""",
        within,
    )
    side = int(len(alpha) ** 0.5)
    return 1 - np.reshape(alpha, (side, side)) / 215


def test_pointing_at_a_word_lights_the_picture(page: Page, tmp_path: pathlib.Path) -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    look = Look(grey, explanation(("a", HOSTILE), corners()), BRANCHES, HOSTILE)
    write_explanation_page(tmp_path / "page.html", look, {"model": HOSTILE}, [("another", -3.0)])
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("canvas.light").is_hidden()
    page.locator("button.word").nth(0).hover()
    assert page.locator("canvas.light").is_visible()
    np.testing.assert_allclose(light(page), explanation(heat=corners()).brightness[0], atol=0.01)
    assert page.locator(".likely").inner_text() == "dog 70\u00a0%, a 30\u00a0%, cow <1\u00a0%"
    picture, canvas = page.locator("#picture img").bounding_box(), page.locator("canvas.light").bounding_box()
    for side in ("x", "y", "width", "height"):
        assert canvas[side] == pytest.approx(picture[side], abs=2)
    page.mouse.move(5, 5)
    assert page.locator("canvas.light").is_hidden()
    # By keyboard: the words take the focus in turn.
    page.locator("button.word").nth(0).focus()
    page.keyboard.press("Tab")
    np.testing.assert_allclose(light(page), explanation(heat=corners()).brightness[1], atol=0.01)
    assert "another (log p -3.00)" in page.locator("main").inner_text()
    assert page.locator("svg.tree text").count() == len(BRANCHES)
    assert page.title().startswith(f"a {HOSTILE}"[:20])


def test_the_gallery_lights_the_square_that_the_model_saw(page: Page, tmp_path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), "grey").save(buffer, "JPEG")
    rows = [
        CaptionRow(i, f"{i}.jpg", buffer.getvalue(), "a cat", explanation=explanation(heat=corners()), crop=crop)
        for i, crop in enumerate(["center", "none"])
    ]
    write_page(tmp_path / "page.html", Report("title", "note", {}, [*rows, CaptionRow(3, "3.jpg", None, "a cat")]))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("#cards .explained").count() == 2
    for i, aspect in enumerate([1.0, 2.0]):
        card = page.locator("#cards .card").nth(i)
        card.locator("button.word").nth(1).hover()
        canvas, frame = card.locator("canvas.light").bounding_box(), card.locator(".picture").bounding_box()
        assert canvas["width"] / canvas["height"] == pytest.approx(aspect, rel=0.02)
        for start, size in (("x", "width"), ("y", "height")):
            assert canvas[start] + canvas[size] / 2 == pytest.approx(frame[start] + frame[size] / 2, abs=1)
    assert re.search(r"default-src 'none'", (tmp_path / "page.html").read_text())
