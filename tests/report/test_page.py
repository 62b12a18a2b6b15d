"""The page holds everything, loads nothing, and no text can become markup."""

import base64
import hashlib
import io
import json
import math
import pathlib
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Page, expect

from capjax.errors import CapjaxError
from capjax.report import CaptionRow, Measure, Report, Score, evaluation_report, write_page, write_sheet
from capjax.report.contents import Difference
from capjax.report.page import MAX_SHOWN

VOID = {"meta", "img", "input"}
CHART_PARTS = {"line", "text", "rect", "title"}
HOSTILE = (
    """</script><script>document.title='taken'</script><img src=x onerror="alert(1)">'"&lt;`${x}-->\u2028é 日本 🐕"""
)


@dataclass
class Parsed(HTMLParser):
    """What a parser other than the writer finds in a page."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return tags and attribute names, but for the inside of charts, which follows the lengths of captions."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements if tag not in CHART_PARTS]

    def text(self) -> str:
        return "".join("".join(parts) for tag, parts in self.texts.items() if tag not in ("script", "style"))

    def data(self) -> dict:
        return json.loads(self.texts["script"][0])


def parse(path: pathlib.Path) -> Parsed:
    page = Parsed()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    return page


def jpeg(colour: str = "red", size: tuple[int, int] = (500, 400)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def report(text: str = "some text", image: bytes | None = None) -> Report:
    """Return a report with `text` in every place that takes text."""
    rows = [
        CaptionRow(
            image_id=index,
            file_name=text,
            image=image,
            caption=text,
            references=(text, "a reference"),
            log_prob=-2.5,
            scores={"CIDEr-D": index / 10, text: 0.5},
            alternatives=((text, -3.0),),
            verdict=text,
            ailments=(text,),
            rival=text,
            rival_scores={"CIDEr-D": 0.4, text: 0.1},
        )
        for index in range(6)
    ]
    return Report(
        title=text,
        note=text,
        settings={"search": "beam", "beam_size": 3, text: text},
        rows=rows,
        scores=[Score("CIDEr-D", 0.913, 0.8951, 0.9314, note=text), Score(text, 0.28712), Score("SPICE", math.nan)],
        health=[Measure("dangling ends", 0.0125, "share", text), Measure(text, 1043, "count"), Measure("mean", 9.414)],
        log=[{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.0, "val/loss": 2.5}],
        interval=text,
        rival=text,
        differences=[Difference(text, 0.0321, -0.0123, 0.0765, 0.042), Difference("CIDEr-D", 0.5, 0.4, 0.6, 1e-4)],
        decoded=f"beam, beam_size 3, {text}",
    )


def test_numbers_stand_in_tables_with_their_settings(tmp_path: pathlib.Path) -> None:
    write_page(tmp_path / "page.html", report())
    page = parse(tmp_path / "page.html")
    cells = page.texts["td"] + page.texts["th"]
    for expected in ("91.3", "89.5 – 93.1", "28.7", "1.2 %", "1,043", "9.41", "Score × 100"):
        assert expected in cells
    assert cells.count("—") == 3  # no number for SPICE, and two scores without an interval
    told = "Decoded with beam, beam_size 3, some text."
    sections = page.text().count(told)
    assert sections >= 5  # scores, best and worst, health, lengths, gallery
    assert {attributes.get("scope") for tag, attributes in page.elements if tag == "th"} == {"col", "row"}


def test_two_models_stand_side_by_side(tmp_path: pathlib.Path) -> None:
    write_page(tmp_path / "page.html", report("the other"))
    page = parse(tmp_path / "page.html")
    assert "Compared with the other" in page.text()
    for expected in ("+3.2", "-1.2 – +7.6", "0.042", "< 0.001"):
        assert expected in page.texts["td"]
    assert page.texts["span"].count("the other:") == 6, "best, median and worst have it too"
    assert page.data()["rival"] == "the other"
    assert page.data()["rows"][0]["rival_scores"] == [0.4, 0.1]


def test_every_row_travels_with_the_page(tmp_path: pathlib.Path) -> None:
    shown = report("a dog runs", jpeg())
    shown = replace(shown, rows=[*shown.rows, CaptionRow(99, "none.jpg", None, "", (), None, {"CIDEr-D": math.nan})])
    write_page(tmp_path / "page.html", shown)
    data = parse(tmp_path / "page.html").data()
    assert data["metrics"] == ["CIDEr-D", "a dog runs"]
    first, last = data["rows"][1], data["rows"][-1]
    picture = base64.b64decode(first.pop("image").removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(picture)).size == (224, 179)
    assert first == {
        "id": "1",
        "file": "a dog runs",
        "caption": "a dog runs",
        "references": ["a dog runs", "a reference"],
        "log_prob": -2.5,
        "scores": [0.1, 0.5],
        "alternatives": [["a dog runs", -3.0]],
        "verdict": "a dog runs",
        "ailments": ["a dog runs"],
        "words": 3,
        "rival": "a dog runs",
        "rival_scores": [0.4, 0.1],
        "explained": None,
    }
    assert (last["image"], last["scores"], last["log_prob"], last["words"]) == ("", [None, None], None, 0)


def test_best_and_worst_stand_above_the_gallery(tmp_path: pathlib.Path) -> None:
    rows = [
        CaptionRow(index, f"{index}.jpg", None, f"caption {index}", scores={"CIDEr-D": index}) for index in range(30)
    ]
    write_page(tmp_path / "page.html", Report("t", "n", {}, rows))
    captions = [text for text in parse(tmp_path / "page.html").texts["p"] if text.startswith("caption ")]
    assert captions == [f"caption {index}" for index in (29, 28, 27, 26, 16, 15, 14, 13, 3, 2, 1, 0)]


def many(num_rows: int, read: list[int]) -> Report:
    """Return a report of many rows whose pictures note that they are read: the best 1 % long, one in 1,000 with UNK."""
    picture, rows = jpeg(size=(64, 48)), []
    for index in range(num_rows):
        place = index * 7 % num_rows
        unknown = index % 1_000 == 7
        rows.append(
            CaptionRow(
                index,
                f"{index}.jpg",
                lambda index=index: read.append(index) or picture,
                "a UNK" if unknown else "a dog runs over the wide green field" if place >= 0.99 * num_rows else "a dog",
                scores={"CIDEr-D": place / num_rows},
                ailments=("unknown_word",) if unknown else (),
            )
        )
    return page_of(rows)


def page_of(rows: list[CaptionRow]) -> Report:
    metrics = {"CIDEr-D": 0.5}
    return evaluation_report(metrics, rows, title="title", note="note", settings={}, decoded="greedy", log=[])


def test_of_many_images_a_page_shows_a_sample_and_the_numbers_of_all(tmp_path: pathlib.Path) -> None:
    read: list[int] = []
    write_page(tmp_path / "page.html", many(4_000, read))
    page = parse(tmp_path / "page.html")
    shown = page.data()["rows"]
    assert len(shown) == MAX_SHOWN and page.data()["total"] == 4_000
    assert sorted(read) == [int(row["id"]) for row in shown]  # no other picture is read, none twice
    assert all(row["image"] for row in shown) and {"7", "1007", "2007", "3007"} <= {row["id"] for row in shown}
    text = page.text()
    assert "1,000 of 4,000 images are shown: the best, the median and the worst, captions with ailments" in text
    assert "All of them are in per_image.jsonl" in text and "Over 4,000 images" in text
    assert "A sample of the captions" in page.texts["h2"]
    assert "Generated captions have 2.1 words on average" in text  # of those shown it is 2.2
    assert {"2 words: 99.0 % of generated", "8 words: 1.0 % of generated"} <= {*page.texts["title"]}


def test_a_page_does_not_grow_with_what_it_does_not_show(tmp_path: pathlib.Path) -> None:
    for num_rows in (2_000, 8_000):
        write_page(tmp_path / f"{num_rows}.html", many(num_rows, []))
    sizes = [(tmp_path / f"{num_rows}.html").stat().st_size for num_rows in (2_000, 8_000)]
    assert sizes[1] < 1.01 * sizes[0]


def test_without_the_metric_that_ranks_a_sample_is_not_said_to_have_the_best(tmp_path: pathlib.Path) -> None:
    rows = [CaptionRow(i, "f", None, "a dog", scores={"BLEU-4": 0.5}) for i in range(MAX_SHOWN + 1)]
    write_page(tmp_path / "page.html", Report("title", "note", {}, rows))
    text = parse(tmp_path / "page.html").text()
    assert "1,000 of 1,001 images are shown: evenly over the data set." in text and "per_image" not in text


def test_up_to_the_limit_a_page_shows_every_image(tmp_path: pathlib.Path) -> None:
    write_page(tmp_path / "page.html", many(MAX_SHOWN, []))
    page = parse(tmp_path / "page.html")
    assert len(page.data()["rows"]) == page.data()["total"] == MAX_SHOWN
    assert "All captions" in page.texts["h2"] and "1,000 images. Scores are those" in page.text()
    assert "per_image.jsonl" not in page.text()


def test_images_without_references_do_not_hide_the_scores_of_the_others(tmp_path: pathlib.Path) -> None:
    rows = [CaptionRow(0, "0.jpg", None, "a dog"), CaptionRow(1, "1.jpg", None, "a cat", scores={"CIDEr-D": 0.5})]
    write_page(tmp_path / "page.html", page_of(rows))
    page = parse(tmp_path / "page.html")
    assert "CIDEr-D" in page.texts["th"] and "50.0" in page.texts["td"] and "Over 1 images" in page.text()


def test_nothing_is_loaded_from_anywhere(tmp_path: pathlib.Path) -> None:
    write_page(tmp_path / "page.html", report(image=jpeg()))
    page = parse(tmp_path / "page.html")
    sources = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert not re.search(r"https?:|url\(|@import|//[a-z]", (tmp_path / "page.html").read_text().split('id="data"')[0])
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    for text in (page.texts["style"][0], page.texts["script"][1]):  # without these the browser would refuse our own
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_hostile_text_stays_text(tmp_path: pathlib.Path) -> None:
    write_page(tmp_path / "plain.html", report(image=jpeg()))
    write_page(tmp_path / "hostile.html", report(HOSTILE, jpeg()))
    plain, hostile = parse(tmp_path / "plain.html"), parse(tmp_path / "hostile.html")
    assert hostile.structure() == plain.structure()
    assert hostile.data()["rows"][0]["caption"] == HOSTILE
    assert hostile.data()["rows"][0]["alternatives"] == [[HOSTILE, -3.0]]
    assert hostile.texts["h1"] == [HOSTILE]
    assert HOSTILE in hostile.texts["li"]
    assert [attributes["alt"] for tag, attributes in hostile.elements if tag == "img"] == [HOSTILE] * 6
    assert "<" not in (tmp_path / "hostile.html").read_text().split('id="data">')[1].split("</script>")[0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(), max_size=40))
def test_no_text_changes_the_markup(tmp_path: pathlib.Path, text: str) -> None:
    write_page(tmp_path / "plain.html", report("x"))
    write_page(tmp_path / "page.html", report(f"x{text}x".replace("\n", "").replace("\r", "")))
    assert parse(tmp_path / "page.html").structure() == parse(tmp_path / "plain.html").structure()


def test_broken_pictures_do_not_stop_the_page(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    write_page(tmp_path / "page.html", report(image=b"broken"))
    assert "6 of 6 pictures cannot be read" in caplog.text
    assert {row["image"] for row in parse(tmp_path / "page.html").data()["rows"]} == {""}


def test_pictures_that_a_damaged_dataset_does_not_give_do_not_stop_page_and_sheet(tmp_path: pathlib.Path) -> None:
    def damaged() -> bytes:
        raise CapjaxError("a shard of the dataset is damaged")

    rows = [CaptionRow(1, "a.jpg", damaged, "a dog"), CaptionRow(2, "b.jpg", jpeg(), "a cat")]
    write_page(tmp_path / "page.html", page_of(rows))
    write_sheet(tmp_path / "sheet.png", rows)
    assert [bool(row["image"]) for row in parse(tmp_path / "page.html").data()["rows"]] == [False, True]
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("rows", [[], [CaptionRow(1, "a.jpg", None, "a dog")]])
def test_pages_with_hardly_any_contents_are_written(tmp_path: pathlib.Path, rows: list[CaptionRow]) -> None:
    write_page(tmp_path / "page.html", Report("title", "", {}, rows))
    page = parse(tmp_path / "page.html")
    assert len(page.data()["rows"]) == len(rows)
    assert "Decoder settings were not given." in page.text()


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium to run the page")
    return found


def opened(browser: str, page: pathlib.Path, search: str) -> str:
    """Return the page as it is once its script has run."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=4000", "--dump-dom"]
    return subprocess.run(
        [*command, page.as_uri() + search], capture_output=True, text=True, timeout=120, check=True
    ).stdout


def test_the_gallery_works_in_a_browser(browser: str, tmp_path: pathlib.Path) -> None:
    rows = [
        CaptionRow(1, "1.jpg", jpeg(), "a black dog", ("a dog on grass",), -1.0, {"CIDEr-D": 0.5}),
        CaptionRow(2, "2.jpg", jpeg(), "two cats", ("cats and a DOG",), -2.0, {"CIDEr-D": 1.5}),
        CaptionRow(3, "3.jpg", None, "a red bus", ("a bus",), -3.0, {"CIDEr-D": 2.5}),
        CaptionRow(4, "4.jpg", jpeg(), HOSTILE + " dog", (HOSTILE,), None, {"CIDEr-D": 1.0}),
        CaptionRow(5, "5.jpg", jpeg(), "a dog in the snow", (), -4.0, {"CIDEr-D": 3.0}),
    ]
    write_page(tmp_path / "page.html", Report("title", "note", {"search": "greedy"}, rows))
    drawn = opened(browser, tmp_path / "page.html", "#query=dog+-snow&sort=score+0&low=60")
    assert "<title>title</title>" in drawn
    assert "2 of 5 images" in drawn
    gallery = drawn.split('<ol id="cards"')[1]
    assert re.findall(r"CIDEr-D <b>([\d.]+)</b>", gallery) == ["150.0", "100.0"]
    assert (
        "<mark>DOG</mark>" in gallery
        and gallery.count("<img") == 2
        and "onerror=" not in re.sub(r">[^<]*<", "><", gallery)
    )


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("query=man", ["1"]),
        ("query=-a", ["2", "3", "4"]),
        ("query=%22a+man%22", ["1"]),
        ("query=%22any+ma%22", []),
        ("query=c%2B%2B", ["3"]),
        ("query=çok", ["3"]),
        ("query=黑色", ["4"]),
        ("query=2.jp&field=file", ["2"]),
    ],
)
def test_the_gallery_is_searched_by_whole_words(browser: str, tmp_path: pathlib.Path, search: str, found: list) -> None:
    captions = ("a man, a plan", "many women", "ÇOK (c++)", "一只黑色的狗")
    rows = [CaptionRow(i, f"{i}.jpg", None, caption, ()) for i, caption in enumerate(captions, 1)]
    write_page(tmp_path / "page.html", Report("title", "note", {}, rows))
    gallery = opened(browser, tmp_path / "page.html", f"#{search}").split('<ol id="cards"')[1]
    assert re.findall(r"(\d)\.jpg</span>", gallery) == found
    if search == "query=man":
        assert gallery.count("<mark>man</mark>") == 1


def test_the_gallery_sorts_by_the_lead_over_the_other_model(browser: str, tmp_path: pathlib.Path) -> None:
    scores = {1: (0.5, 0.9), 2: (1.5, 0.1), 3: (2.5, 2.4)}
    rows = [
        CaptionRow(
            i, f"{i}.jpg", None, f"ours {i}", (), None, {"CIDEr-D": a}, rival=f"theirs {i}", rival_scores={"CIDEr-D": b}
        )
        for i, (a, b) in scores.items()
    ]
    write_page(tmp_path / "page.html", Report("title", "note", {}, rows, rival="runs/other"))
    gallery = opened(browser, tmp_path / "page.html", "#sort=lead").split('<ol id="cards"')[1]
    found = re.findall(
        r'class="rival" dir="auto"><span>runs/other:</span> <bdi>theirs (\d)</bdi> <b>([\d.]+)</b>', gallery
    )
    assert found == [("2", "10.0"), ("3", "240.0"), ("1", "90.0")]
    searched = opened(browser, tmp_path / "page.html", "#query=theirs+2&field=caption").split('<ol id="cards"')[1]
    assert re.findall(r"(\d)\.jpg</span>", searched) == ["2"]


def test_ids_of_64_bits_are_found_and_sorted_in_a_browser(browser: str, tmp_path: pathlib.Path) -> None:
    rows = [CaptionRow(2**60 + i, f"{i}.jpg", None, "a dog") for i in (0, 2, 1)]
    write_page(tmp_path / "page.html", page_of(rows))
    order = opened(browser, tmp_path / "page.html", "#sort=id&order=down").split('<ol id="cards"')[1]
    assert re.findall(r"(\d)\.jpg</span>", order) == ["2", "1", "0"]
    found = opened(browser, tmp_path / "page.html", f"#query={2**60 + 1}&field=file").split('<ol id="cards"')[1]
    assert re.findall(r"(\d)\.jpg</span>", found) == ["1"]


def test_a_comparison_without_scores_is_shown_in_a_browser(browser: str, tmp_path: pathlib.Path) -> None:
    rows = [CaptionRow(1, "1.jpg", None, "a dog", rival="a cat")]
    page = evaluation_report({}, rows, title="t", note="n", settings={}, decoded="greedy", log=[], rival="runs/other")
    write_page(tmp_path / "page.html", page)
    drawn = opened(browser, tmp_path / "page.html", "").split('<ol id="cards"')[1]
    assert "<span>runs/other:</span> <bdi>a cat</bdi> <b></b>" in drawn


def test_an_address_that_changes_changes_the_search(page: Page, tmp_path: pathlib.Path) -> None:
    rows = [CaptionRow(i, f"{i}.jpg", None, caption) for i, caption in enumerate(("a dog", "a cat", "a big cat"))]
    write_page(tmp_path / "page.html", page_of(rows))
    page.goto((tmp_path / "page.html").as_uri() + "#query=dog")
    expect(page.locator("#count")).to_have_text("1 of 3 images")
    page.evaluate("location.hash = '#query=cat&sort=words'")
    expect(page.locator("#count")).to_have_text("2 of 3 images")
    page.evaluate("location.hash = '#gallery'")  # a heading: the search stays
    page.wait_for_timeout(300)
    expect(page.locator("#count")).to_have_text("2 of 3 images")
    page.evaluate("location.hash = '#sort=words'")
    expect(page.locator("#count")).to_have_text("All 3 images")


def test_captions_with_an_ailment_are_found_in_a_browser(browser: str, tmp_path: pathlib.Path) -> None:
    write_page(tmp_path / "page.html", many(4_000, []))
    drawn = opened(browser, tmp_path / "page.html", "#ailment=unknown+word")
    assert "4 of 1,000 images shown here, of 4,000" in drawn
    assert re.findall(r"(\d+)\.jpg</span>", drawn.split('<ol id="cards"')[1]) == ["7", "1007", "2007", "3007"]
