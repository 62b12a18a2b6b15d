"""Downloads against a real HTTP server on this machine, one that breaks connections."""

import hashlib
import http.server
import threading

import pytest

from capjax.data.download import Download, fetch
from capjax.errors import CapjaxError

CONTENT = bytes(range(256)) * 1200


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `server.limits` says after how many bytes each next answer breaks off."""

    def do_GET(self):
        start = 0
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.path != "/file.zip":
            self.send_error(404)
            return
        if asked and self.server.serves_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit = self.server.limits.pop(0) if self.server.limits else len(body)
        self.wfile.write(body[:limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.limits, server.ranges, server.serves_ranges = CONTENT, [], [], True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pinned(server, content: bytes = CONTENT, name: str = "file.zip") -> Download:
    url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    return Download(url, len(content), hashlib.sha256(content).hexdigest())


def test_a_download_is_complete_and_not_repeated(server, tmp_path):
    path = fetch(pinned(server), tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert fetch(pinned(server), tmp_path / "new") == path
    assert len(server.ranges) == 1
    assert [p.name for p in path.parent.iterdir()] == ["file.zip"]


def test_broken_connections_are_continued_where_they_broke(server, tmp_path):
    server.limits = [100_000, 0, 50_000]
    assert fetch(pinned(server), tmp_path, wait_seconds=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_a_partial_file_of_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:70_000])
    assert fetch(pinned(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=70000-"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.serves_ranges = False
    server.limits = [100_000]
    assert fetch(pinned(server), tmp_path, wait_seconds=0).read_bytes() == CONTENT


def test_another_file_than_the_pinned_one_is_refused_and_deleted(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(CapjaxError, match="SHA-256"):
        fetch(pinned(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.content = CONTENT + b"more"
    with pytest.raises(CapjaxError, match="the server offers"):
        fetch(pinned(server), tmp_path)


def test_errors_of_the_server_and_no_server(server, tmp_path):
    with pytest.raises(CapjaxError, match="404"):
        fetch(pinned(server, name="nothing.zip"), tmp_path)
    server.limits = [1000, 0, 0, 0]
    with pytest.raises(CapjaxError, match="run the same command again"):
        fetch(pinned(server), tmp_path, num_attempts=2, wait_seconds=0)
    assert (tmp_path / "file.zip.part").stat().st_size == 1000


def test_too_little_room_is_said_before_the_download(server, tmp_path):
    with pytest.raises(CapjaxError, match="room"):
        fetch(pinned(server)._replace(size=10**18), tmp_path)
    assert server.ranges == []
