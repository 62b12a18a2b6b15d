"""What stands around every request: headers, whose page may ask, and problems where something fails."""

import logging

import pytest

from capjax.serving.guard import own_hosts
from capjax.serving.service import Service
from tests.serving.running import PHOTOS, Server, check_problem

PHOTO = PHOTOS[0].read_bytes()
FILES = {"files": {"image": ("a.png", PHOTO)}}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/page.css", 200),
        ("GET", "/page.js", 200),
        ("GET", "/v1/model", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nothing", 404),
        ("GET", "/v1/captions/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/page.css/../service.py", 404),
        ("GET", "/v1/captions", 405),
        ("OPTIONS", "/v1/captions", 405),
        ("POST", "/", 405),
        ("DELETE", "/v1/model", 405),
    ],
)
def test_every_answer_has_the_headers_that_shut_others_out(server: Server, method: str, path: str, status: int) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=(self)" in answer.headers["permissions-policy"] and "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        check_problem(answer, status, "expected a")
    if status == 405:
        assert answer.headers["allow"]
    assert method != "HEAD" or answer.content == b""


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "", "[::1", "a@b:c"])
def test_a_foreign_name_that_leads_here_reads_nothing(server: Server, host: str) -> None:
    check_problem(server.client.get("/v1/model", headers={"Host": host}), 403, "expected a Host out of")
    check_problem(server.client.post("/v1/captions", headers={"Host": host}, **FILES), 403, "expected a Host out of")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_the_names_of_the_loopback_device_are_ours(server: Server, host: str) -> None:
    assert server.client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_a_server_that_is_open_to_others_is_asked_by_any_name() -> None:
    open_to_others = [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("192.0.2.7", "192.0.2.7"), ("photos.example", "192.0.2.7")]
    assert {own_hosts(*bound) for bound in open_to_others} == {()}


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("127.0.0.5", "127.0.0.5"),
        ("::1", "::1"),
        ("localhost", "127.0.0.1"),
        ("LOCALHOST", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("ip6-localhost", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_a_server_of_the_loopback_device_is_asked_by_its_names_however_it_was_spelt(name: str, address: str) -> None:
    assert {"localhost", "127.0.0.1", "::1", name.lower()} <= set(own_hosts(name, address))


def test_a_proxy_before_the_loopback_device_is_asked_by_names_of_its_own() -> None:
    alone = set(own_hosts("127.0.0.1", "127.0.0.1"))
    assert set(own_hosts("127.0.0.1", "127.0.0.1", ("",))) == alone
    assert set(own_hosts("127.0.0.1", "127.0.0.1", ["Photos.example", " b.example"])) - alone == {
        "photos.example",
        "b.example",
    }
    assert own_hosts("0.0.0.0", "0.0.0.0", ("photos.example",)) == ()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_send_nothing(server: Server, headers: dict[str, str]) -> None:
    check_problem(server.client.post("/v1/captions", headers=headers, **FILES), 403, "of another site")


@pytest.mark.parametrize("origin", ["http://[", "null", "http://[::1", "\x7f"])
def test_an_origin_that_is_none_is_another_site(server: Server, origin: str) -> None:
    answer = server.client.post("/v1/captions", headers={"Origin": origin}, files={"image": b"x"})
    assert answer.status_code == 403


def test_our_own_page_and_programs_may_send(server: Server) -> None:
    for headers in ({}, {"Origin": server.url}, {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}):
        assert server.client.post("/v1/captions", headers=headers, **FILES).status_code == 200


def test_a_bug_is_logged_and_not_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Service) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Service, "describe", fail)
    with caplog.at_level(logging.ERROR):
        answer = server.client.get("/v1/model")
    check_problem(answer, 500, "the server's log says what")
    assert "secret" not in answer.text and "content-security-policy" in answer.headers
    assert "a secret" in caplog.text and "GET /v1/model failed" in caplog.text
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "request_bytes", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"GET /" + b"a" * 200_000]
)
def test_what_is_not_http_is_told_so(server: Server, request_bytes: bytes) -> None:
    answer = server.say(request_bytes + b"\r\n\r\n")
    if answer or len(request_bytes) < 1000:  # of a long one the system may drop the answer with what nobody read
        assert answer.startswith(b"HTTP/1.1 400 ") and b"application/problem+json" in answer
        assert b"content-security-policy" in answer
    assert server.client.get("/healthz").status_code == 200


def test_paths_that_anybody_can_make_up_are_counted_as_one(server: Server) -> None:
    for i in range(5):
        server.client.get(f"/made-up-{i}")
    counts = server.client.get("/metrics").text
    assert "made-up" not in counts and 'capjax_requests_total{path="other",status="404"}' in counts
