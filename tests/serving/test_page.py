"""The page in Chromium: pictures in by every way, captions and where they came from out, by mouse and by keyboard."""

import base64
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, FilePayload, Page, Route, TimeoutError, expect

from tests.serving.running import PHOTOS, Server, picture

SENTENCE = "there is a red circle"


def in_memory(name: str, content: bytes) -> FilePayload:
    """Return a file to choose, whatever its name."""
    return {"name": name, "mimeType": "image/png", "buffer": content}


@dataclass
class Visit:
    """A page that is open, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def choose(self, *files: pathlib.Path | FilePayload) -> None:
        """Choose files as a person does."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Choose pictures").click()
        payloads = [in_memory(f.name, f.read_bytes()) if isinstance(f, pathlib.Path) else f for f in files]
        chooser.value.set_files(payloads)

    def note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "the server responded with a status of 4" not in message.text:
            self.complaints.append(message.text)


@pytest.fixture
def visit(chromium: Browser, server: Server) -> Iterator[Visit]:
    """Open the page; whatever it does, it asks nobody else and breaks no rule of its policy."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(60_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    expect.set_options(timeout=60_000)
    opened = Visit(context.new_page())
    opened.page.on("console", opened.note)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.asked.append(request.url))
    opened.page.goto(server.url)
    expect(opened.page.locator("#model dd").first).to_be_visible()
    yield opened
    context.close()
    assert opened.complaints == []
    assert {url for url in opened.asked if not url.startswith((server.url, "blob:", "data:"))} == set()


def test_chosen_pictures_get_their_captions_newest_first(visit: Visit, server: Server) -> None:
    visit.choose(PHOTOS[0], PHOTOS[4])
    cards = visit.page.locator(".card")
    expect(cards).to_have_count(2)
    expect(cards.nth(1).locator(".caption")).to_have_text(SENTENCE)
    expect(cards.nth(0).locator(".caption")).to_have_text("there is a red box")
    expect(cards.nth(1).get_by_role("img", name="00.png")).to_be_visible()
    expect(cards.nth(1).locator(".explanation")).to_be_visible()
    answer = server.post(PHOTOS[0].read_bytes(), explain="true").json()["captions"][0]
    expect(cards.nth(1).locator(".facts")).to_contain_text(f"log-probability {answer['log_prob']:.2f}")
    words = [f"{word['text']}{100 * word['probability']:.0f} %" for word in answer["explanation"]["words"]]
    expect(cards.nth(1).locator(".token")).to_have_text(words)
    expect(visit.page.get_by_role("status")).to_contain_text(f": {SENTENCE[:11]}")
    visit.page.get_by_role("button", name="Clear").click()
    expect(cards).to_have_count(0)
    expect(visit.page.get_by_role("button", name="Choose pictures")).to_be_focused()


def test_no_picture_of_many_is_dropped_unless_it_has_its_caption(visit: Visit) -> None:
    visit.choose(*(in_memory(f"{i}.png", PHOTOS[i % len(PHOTOS)].read_bytes()) for i in range(65)))
    expect(visit.page.locator(".card.busy")).to_have_count(0)
    assert visit.page.locator(".card .caption").count() == 65
    visit.choose(PHOTOS[0])
    expect(visit.page.locator(".card")).to_have_count(60)  # the oldest went, all of which had their captions


def test_no_more_is_asked_at_once_than_the_server_takes(chromium: Browser, serve: Callable[..., Server]) -> None:
    page = chromium.new_page()
    answers: list[int] = []
    page.on("response", lambda response: answers.append(response.status))
    page.goto(serve(max_requests_per_client=1, max_batch=1).url)
    expect(page.locator("#model dd").first).to_be_visible()
    page.locator("#files").set_input_files([in_memory(f"{i}.png", PHOTOS[i].read_bytes()) for i in range(3)])
    expect(page.locator(".card .tokens button").first).to_be_visible()
    expect(page.locator(".card.busy")).to_have_count(0)
    assert set(answers) == {200}
    page.close()


def test_what_is_cleared_is_not_sent_again(visit: Visit) -> None:
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "too many"})

    visit.page.route("**/v1/captions", refuse)
    visit.choose(*PHOTOS[:6])
    expect(visit.page.locator(".card.busy")).to_have_count(6)
    visit.page.get_by_role("button", name="Clear").click()
    visit.page.wait_for_timeout(5_000)
    assert len(asked) <= 4 + 4, "once more at most, by those that were waiting"
    visit.page.unroute("**/v1/captions")
    visit.choose(PHOTOS[0])
    expect(visit.page.locator(".card .caption")).to_have_text(SENTENCE)
    visit.complaints[:] = [complaint for complaint in visit.complaints if "status of 503" not in complaint]


def test_a_server_that_wants_an_hour_is_not_waited_for(visit: Visit) -> None:
    answer = {"status": 503, "headers": {"Retry-After": "3600"}, "json": {"detail": "too many"}}
    visit.page.route("**/v1/captions", lambda route: route.fulfill(**answer))
    visit.choose(PHOTOS[0])
    expect(visit.page.get_by_role("alert")).to_have_text("too many", timeout=10_000)
    visit.complaints[:] = [complaint for complaint in visit.complaints if "status of 503" not in complaint]


def test_a_busy_server_is_asked_again(visit: Visit) -> None:
    answers = iter([429, 503])

    def refuse(route: Route) -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"detail": "too many"})

    visit.page.route("**/v1/captions", refuse)
    visit.choose(PHOTOS[0])
    expect(visit.page.locator(".card .caption")).to_have_text(SENTENCE)
    visit.complaints[:] = [complaint for complaint in visit.complaints if "status of 503" not in complaint]


def test_a_picture_is_pasted(visit: Visit) -> None:
    visit.page.evaluate(
        """async (content) => {
          const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
          const blob = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(PHOTOS[0].read_bytes()).decode(),
    )
    visit.page.keyboard.press("Control+V")
    expect(visit.page.locator(".caption")).to_have_text(SENTENCE)


def test_pictures_are_dropped_anywhere(visit: Visit) -> None:
    carried = visit.page.evaluate_handle(
        """(content) => {
          const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
          const carried = new DataTransfer();
          carried.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          return carried;
        }""",
        base64.b64encode(PHOTOS[0].read_bytes()).decode(),
    )
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": carried})
    expect(visit.page.locator("#drop")).to_have_class("over")
    visit.page.dispatch_event("body", "drop", {"dataTransfer": carried})
    expect(visit.page.locator(".caption")).to_have_text(SENTENCE)
    expect(visit.page.locator("#drop")).not_to_have_class("over")
    expect(visit.page.locator(".file")).to_have_text("dropped.png")


def test_everything_works_by_keyboard(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    keyboard.press("Tab")
    expect(visit.page.get_by_role("button", name="Choose pictures")).to_be_focused()
    try:
        with visit.page.expect_file_chooser(timeout=20_000) as chooser:
            keyboard.press("Space")
    except TimeoutError:  # on a machine that was overloaded Chromium has let one press go
        with visit.page.expect_file_chooser() as chooser:
            keyboard.press("Space")
    chooser.value.set_files(PHOTOS[0])
    expect(visit.page.locator(".explanation")).to_be_visible()
    heat = visit.page.locator("canvas.heat")
    expect(heat).to_be_hidden()
    for name in ("search settings", "clear", "copy"):
        keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.matches(':focus-visible')"), name
    keyboard.press("Enter")
    expect(visit.page.get_by_role("status")).to_have_text("Copied.")
    assert visit.page.evaluate("navigator.clipboard.readText()") == SENTENCE
    for word in ("there", "is", "a", "red"):
        keyboard.press("Tab")
        focused = visit.page.locator(":focus")
        expect(focused).to_contain_text(word)
        expect(focused).to_have_attribute("aria-pressed", "true")
        expect(heat).to_be_visible()
        expect(visit.page.locator(".likely caption")).to_have_text(f"Most likely where “{word}” stands")
    expect(visit.page.locator(".likely tr.said td").first).to_have_text("red")
    keyboard.press("Escape")
    expect(heat).to_be_hidden()


@pytest.mark.parametrize("size", [(120, 60), (60, 120)])
def test_the_heat_lies_where_the_model_looked(visit: Visit, server: Server, size: tuple[int, int]) -> None:
    photo = picture(size)
    visit.choose(in_memory("noise.png", photo))
    visit.page.locator(".token").first.hover()
    heat, image = visit.page.locator("canvas.heat"), visit.page.locator(".card img")
    expect(heat).to_be_visible()
    inner, outer = heat.bounding_box(), image.bounding_box()
    assert outer["width"] / outer["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    side = min(outer["width"], outer["height"])  # the model sees the largest centred square
    assert (inner["width"], inner["height"]) == pytest.approx((side, side), abs=1.5)
    for start, length in (("x", "width"), ("y", "height")):
        middles = [box[start] + box[length] / 2 for box in (inner, outer)]
        assert middles[0] == pytest.approx(middles[1], abs=1.5)
    alpha = visit.page.evaluate(
        """() => { const canvas = document.querySelector('canvas.heat');
        return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]
            .filter((_, i) => i % 4 === 3); }"""
    )
    told = server.post(photo, explain="true").json()["captions"][0]["explanation"]["words"][0]["heat"]
    # What had most to do with the word is not darkened, what had nothing is most.
    np.testing.assert_allclose(1 - np.asarray(alpha) / 215, np.ravel(told), atol=0.01)
    assert np.ptp(alpha) > 100


def test_what_cannot_be_captioned_is_said_in_its_place(visit: Visit, server: Server) -> None:
    hostile = "<img src=x onerror=document.title='taken'>.png"
    visit.choose(in_memory(hostile, b"no image at all"), PHOTOS[0])
    detail = server.post(b"no image at all").json()["detail"]
    bad = visit.page.locator(".card").nth(1)
    expect(bad.get_by_role("alert")).to_have_text(detail)
    expect(bad.locator(".file")).to_have_text(hostile)
    expect(bad.locator(".nopicture")).to_contain_text("this browser cannot show it")
    expect(visit.page.locator(".card").nth(0).locator(".caption")).to_have_text(SENTENCE)
    assert "taken" not in visit.page.title()


def test_a_server_that_is_gone_is_said(visit: Visit) -> None:
    visit.page.route("**/v1/captions", lambda route: route.abort())
    visit.choose(PHOTOS[0])
    expect(visit.page.get_by_role("alert")).to_have_text("The server does not answer. Is it still running?")
    assert any("ERR_FAILED" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_the_search_is_set_in_a_form(visit: Visit, server: Server) -> None:
    page = visit.page
    page.locator("#search summary").click()
    expect(page.get_by_label("temperature")).to_be_hidden()  # greedy search has none
    page.get_by_label("method").select_option("beam")
    page.get_by_label("beam size").fill("4")
    page.get_by_label("num captions").fill("3")
    page.get_by_label("must contain").fill("box")
    expect(page.locator("#chosen")).to_have_text("method beam, num captions 3, beam size 4, must contain box")
    visit.choose(PHOTOS[0])
    wanted = server.post(PHOTOS[0].read_bytes(), method="beam", beam_size="4", num_captions="3", must_contain="box")
    entry = wanted.json()["captions"][0]
    expect(page.locator(".caption")).to_have_text(entry["caption"])
    told = [f"{other['caption']} {other['log_prob']:.2f}" for other in entry["alternatives"]]
    expect(page.locator(".others li")).to_have_text(told)
    page.get_by_label("must contain").fill("unicorn")
    visit.choose(PHOTOS[0])
    expect(page.get_by_role("alert")).to_contain_text("not in the vocabulary")
    page.get_by_role("button", name="Back to the server’s settings").click()
    expect(page.locator("#chosen")).to_have_text("greedy, as the server was set up")
    visit.choose(PHOTOS[4])
    expect(page.locator(".card").first.locator(".caption")).to_have_text("there is a red box")


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(visit: Visit, width: int, scheme: str) -> None:
    page = visit.page
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.locator("#search summary").click()
    long = in_memory("a" * 150 + ".png", picture((900, 100)))
    visit.choose(PHOTOS[0], long, in_memory("x.png", b"x" * 99))
    expect(page.locator(".explanation:visible")).to_have_count(2)
    page.locator(".token").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")


def test_a_photo_is_taken_where_there_is_a_camera_at_hand(chromium: Browser, server: Server) -> None:
    context = chromium.new_context(has_touch=True, is_mobile=True, viewport={"width": 360, "height": 800})
    page = context.new_page()
    page.goto(server.url)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(PHOTOS[0])
    expect(page.locator(".caption")).to_have_text(SENTENCE)
    context.close()
