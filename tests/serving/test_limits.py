"""Whatever is too much is refused with a problem that says so, and the server goes on."""

import contextlib
import io
import json
import pathlib
import socket
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from capjax.captioning.loaded_model import LoadedModel
from capjax.errors import CapjaxError
from capjax.serving.limits import Limits
from capjax.serving.protocol import make_server
from tests.serving.running import PHOTOS, Server, check_problem, picture, serving

PHOTO = PHOTOS[0].read_bytes()


def png_bomb(width: int, height: int) -> bytes:
    """Write a PNG whose header promises many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000 * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def still_captions(server: Server) -> None:
    assert server.post(PHOTO).json()["captions"][0]["caption"] == "there is a red circle"


@pytest.fixture(scope="module")
def small(model: LoadedModel) -> Iterator[Server]:
    """A server with small limits."""
    with serving(
        model, max_request_bytes=100_000, max_pixels=1_000_000, max_images=3, body_seconds=0.5, header_seconds=0.5
    ) as running:
        yield running


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read(small: Server) -> None:
    head = b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100001\r\n\r\n"
    with socket.create_connection(("127.0.0.1", small.port), timeout=60) as connection:
        connection.sendall(head)  # and not a byte of the body
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"at most 100,000 bytes, got 100,001" in answer
    check_problem(small.post(bytes(200_000)), 413, "at most 100,000 bytes")
    still_captions(small)


def test_a_body_without_a_length_is_counted_as_it_comes(small: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(10_000)

    headers = {"Content-Type": "image/png"}
    check_problem(small.client.post("/v1/captions", content=chunks(), headers=headers), 413, "at most 100,000 bytes")
    answer = small.client.post("/v1/captions", content=iter([PHOTO[:100], PHOTO[100:]]), headers=headers)
    assert answer.json()["captions"][0]["caption"] == "there is a red circle"


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_who_sends_slowly_is_told_so(small: Server, framing: bytes) -> None:
    head = b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n" + framing + b"\r\n\r\n"
    answer = small.say(head + b"3\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"within 0.5 seconds" in answer
    still_captions(small)


@pytest.mark.parametrize("start", [b"", b"POST /v1/cap", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_who_never_ends_the_head_of_a_request_is_cut_off(small: Server, start: bytes) -> None:
    assert small.say(start) == b""
    still_captions(small)


def test_a_connection_that_idles_after_an_answer_is_cut_off(small: Server) -> None:
    assert small.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h").count(b"HTTP/1.1 200") == 1


def test_too_many_pixels_are_refused_by_the_header(small: Server) -> None:
    check_problem(small.post(png_bomb(1001, 1000)), 413, "at most 1 megapixels, got 1001×1000")
    check_problem(small.post(png_bomb(100_000, 100_000)), 413, "megapixels")
    check_problem(small.post(png_bomb(2**31 - 1, 2**31 - 1)), 413, "megapixels")
    assert small.post(picture((1000, 20))).status_code == 200


def test_icons_are_refused_which_may_hold_more_pixels_than_they_announce(small: Server) -> None:
    inside = png_bomb(10_000, 10_000)
    icons = b"ic07" + struct.pack(">I", 8 + len(inside)) + inside  # announced as of 128 × 128
    check_problem(small.post(b"icns" + struct.pack(">I", 8 + len(icons)) + icons), 415, "got an icon")
    check_problem(small.post(picture(form="ICO")), 415, "got an icon")


def test_too_many_images_are_refused(small: Server) -> None:
    assert small.post(*[PHOTO] * 3).status_code == 200
    check_problem(small.post(*[PHOTO] * 4), 413, "at most 3 files")
    check_problem(small.post(*[PHOTO] * 100), 413, "at most 3 files")


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"", 415, "an empty file"),
        (b"GIF87a", 415, "expected an image"),
        (b"<!doctype html><script>alert(1)</script>", 415, "a web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", 415, "expected an image"),
        (PHOTO[: len(PHOTO) // 2], 422, "damaged"),
        (picture((60, 40), form="JPEG")[:1500], 422, "damaged"),
        (picture((4, 60)), 422, "at least 8×8 pixels"),
    ],
)
def test_what_is_no_image_or_a_damaged_one_is_refused(small: Server, content: bytes, status: int, detail: str) -> None:
    check_problem(small.post(content), status, detail)
    raw = small.client.post("/v1/captions", content=content, headers={"Content-Type": "image/png"})
    check_problem(raw, status, detail)


@pytest.mark.parametrize(
    ("kind", "body", "status", "detail"),
    [
        ("", b"x", 415, "got no Content-Type"),
        ("application/json", b"{}", 415, "got application/json"),
        ("multipart/form-data", b"x", 400, "expected multipart/form-data"),
        ("multipart/form-data; boundary=b", b"x", 400, "expected multipart/form-data"),
        ("multipart/form-data; boundary=" + "b" * 5000, b"x", 400, "expected multipart/form-data"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422, "at least one image"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 400, "expected multipart/form-data"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
            422,
            "expected a file under `image`, got text",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\nx\r\n--b--\r\n',
            422,
            "under the field `image`, got one under 'photo'",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n' * 2 + b"--b--\r\n",
            422,
            "at least one image",
        ),
    ],
)
def test_bodies_of_another_kind_are_refused(small: Server, kind: str, body: bytes, status: int, detail: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    check_problem(small.client.post("/v1/captions", content=body, headers=headers), status, detail)


def test_a_field_that_comes_twice_is_refused(small: Server) -> None:
    answer = small.client.post("/v1/captions?seed=1&seed=2", content=PHOTO, headers={"Content-Type": "image/png"})
    check_problem(answer, 422, "'seed' once")
    both = small.client.post("/v1/captions?seed=1", files={"image": PHOTO}, data={"seed": "2"})
    check_problem(both, 422, "'seed' once")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x.png", "a\u2028b\x1b[2J.png", "é🐕" * 300])
def test_the_name_of_a_file_is_a_label_that_leads_nowhere(small: Server, name: str) -> None:
    answer = small.client.post("/v1/captions", files={"image": (name, PHOTO)})
    told = answer.json()["captions"][0]
    assert told["caption"] == "there is a red circle"
    assert len(told["file"]) <= 2000 and told["file"].isprintable()


def test_the_charset_of_a_sender_decodes_nothing(small: Server) -> None:
    for charset in ("unicode_escape", "utf-16", "idna", "punycode", "hex", "no such"):
        body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="\\ud800.png"\r\n\r\n%s\r\n--b--\r\n'
        kind = f"multipart/form-data; charset={charset}; boundary=b"
        answer = small.client.post("/v1/captions", content=body % PHOTO, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text


def test_nothing_of_an_upload_is_written_to_the_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    buffer = io.BytesIO()
    Image.new("RGB", (1500, 1200), "red").save(buffer, "BMP")
    answer = server.post(buffer.getvalue(), buffer.getvalue())
    assert len(buffer.getvalue()) > 5_000_000 and answer.status_code == 200, answer.text
    assert not rolled


def test_one_client_has_so_many_requests_at_once(serve) -> None:
    server = serve(max_requests_per_client=2)
    with uploads_under_way(server, 2):
        refused = server.post(PHOTO)
        check_problem(refused, 429, "at most 2 requests of one client")
        assert int(refused.headers["retry-after"]) > 0
        assert server.client.get("/healthz").status_code == 200
        with socket.create_connection(("127.0.0.1", server.port), 60, source_address=("127.0.0.2", 0)) as other:
            other.sendall(head(len(PHOTO)) + PHOTO)
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
    still_captions(server)


def test_all_bodies_together_have_a_bound(serve) -> None:
    server = serve(max_body_bytes=5_000)
    with uploads_under_way(server, 2, announced=2_400):
        refused = server.post(PHOTO)
        check_problem(refused, 503, "at most 5,000 bytes")
        assert int(refused.headers["retry-after"]) > 0
    still_captions(server)


def head(length: int, more: bytes = b"Connection: close\r\n") -> bytes:
    start = b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    return start + more + b"Content-Length: %d\r\n\r\n" % length


@contextlib.contextmanager
def uploads_under_way(server: Server, number: int, announced: int = 1000) -> Iterator[None]:
    """Have some requests that are not whole yet, and that the server waits for."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(head(announced, b"Expect: 100-continue\r\n"))
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # now the body is being read
        yield
    while server.service.admission.bytes_held:  # the server notices that they are gone
        server.client.get("/healthz")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold all batches up until the event is set."""
    go_on = threading.Event()
    from capjax.serving.programs import Programs

    caption = Programs.caption

    def slow_caption(self: Programs, generator, images, *more):
        if images.any():  # not the black ones that are compiled for
            go_on.wait(60)
        return caption(self, generator, images, *more)

    monkeypatch.setattr(Programs, "caption", slow_caption)
    yield go_on
    go_on.set()


def test_so_many_images_wait(serve, held: threading.Event) -> None:
    server = serve(max_queue=3)
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(server.post(PHOTO, PHOTO).status_code))
    first.start()
    while server.service.admission.images_held < 2:
        pass
    refused = server.post(PHOTO, PHOTO)
    check_problem(refused, 503, "at most 3 images waiting")
    assert int(refused.headers["retry-after"]) > 0
    held.set()
    first.join(60)
    assert answers == [200]
    still_captions(server)


def test_what_takes_too_long_is_given_up(serve, held: threading.Event) -> None:
    server = serve(answer_seconds=0.2, max_batch=1)
    for _ in range(3):
        refused = server.post(PHOTO, PHOTO)
        check_problem(refused, 503, "within 0.2 seconds")
        assert "retry-after" in refused.headers
    assert server.service.admission.images_held == 0 == server.service.admission.bytes_held
    held.set()
    while server.post(PHOTO).status_code != 200:
        pass
    assert "capjax_queue_images 0.0" in server.client.get("/metrics").text


def test_so_many_connections_are_open(serve) -> None:
    server = serve(max_connections=3)
    server.client.get("/healthz")  # the first
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        server.client.get("/healthz")  # the event loop has seen the others
        assert server.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == b""
    still_captions(server)


def test_until_everything_is_compiled_there_are_no_captions(model: LoadedModel, monkeypatch) -> None:
    from capjax.serving.programs import Programs

    go_on, prepare = threading.Event(), Programs.prepare
    monkeypatch.setattr(Programs, "prepare", lambda *args: (go_on.wait(60), prepare(*args)))
    with serving(model, is_awaited=False, max_batch=1) as server:
        check_problem(server.client.get("/readyz"), 503, "still compiles")
        assert server.client.get("/healthz").status_code == 200
        check_problem(server.post(PHOTO), 503, "still compiles")
        go_on.set()
        while server.client.get("/readyz").status_code != 200:
            pass
        still_captions(server)


@pytest.mark.parametrize("limits", [{"max_images": 0}, {"answer_seconds": float("nan")}, {"max_batch": -1}])
def test_limits_that_cannot_be_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(CapjaxError, match=f"expected {next(iter(limits))} above 0"):
        Limits(**limits)


def test_a_server_that_ends_waits_for_what_is_still_sent() -> None:
    limits = Limits(body_seconds=7.0, answer_seconds=5.0)
    assert make_server(None, limits).config.timeout_graceful_shutdown >= 12


def test_batches_have_few_sizes() -> None:
    assert [Limits(max_batch=most).batch_sizes for most in (1, 3, 4, 16, 20)] == [
        (1,), (1, 3), (1, 4), (1, 4, 16), (1, 4, 16, 20),
    ]  # fmt: skip


def test_problems_name_no_file_of_the_server(small: Server) -> None:
    for answer in (small.post(b"x"), small.post(PHOTO, beam_size="x"), small.client.get("/etc/passwd")):
        assert str(pathlib.Path.cwd()) not in json.dumps(answer.json())
