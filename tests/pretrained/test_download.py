"""Downloads from a server on the loopback interface that misbehaves in the ways real ones do."""

import hashlib
import http.server
import threading

import pytest

from capjax.errors import CapjaxError
from capjax.pretrained import download

CONTENT = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; the attributes say how well."""

    content = CONTENT
    serves_ranges = True
    cuts_after = ()  # bytes after which the first, second, … connection breaks
    statuses = ()  # statuses of the first, second, … answers, instead of serving

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested_ranges = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/weights.h5"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        attempt = len(server.requested_ranges)
        wanted = self.headers.get("Range")
        server.requested_ranges.append(wanted)
        if attempt < len(server.statuses):
            self.send_error(server.statuses[attempt])
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.serves_ranges else 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts_after[attempt] if attempt < len(server.cuts_after) else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server, cache_dir, md5=MD5):
    return download.fetch(download.PublishedFile(server.url, md5), cache_dir, num_attempts=3, pause_seconds=0.01)


def test_file_is_fetched_once(server, tmp_path):
    path = fetch(server, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert fetch(server, tmp_path / "new" / "folder") == path
    assert server.requested_ranges == [None]
    assert [file.name for file in path.parent.iterdir()] == ["weights.h5"]


def test_interrupted_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.cuts_after = (4 << 16, 3 << 16)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == [None, "bytes=262144-", "bytes=458752-"]


def test_a_later_run_goes_on_where_an_earlier_one_stopped(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT[:700_000])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-"]


def test_complete_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_server_without_ranges_starts_over(server, tmp_path):
    server.serves_ranges = False
    (tmp_path / "weights.h5.part").write_bytes(b"x" * 700_000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-"]


def test_wrong_content_is_refused_and_deleted(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(CapjaxError, match=f"MD5 {hashlib.md5(server.content).hexdigest()}, published is {MD5}"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_part_is_refused_once_and_fetched_anew(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(b"x" * 700_000)
    with pytest.raises(CapjaxError, match="run the command again"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    (tmp_path / "weights.h5").write_bytes(CONTENT[:-1])
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_missing_file_is_final(server, tmp_path):
    server.statuses = (404,) * 9
    with pytest.raises(CapjaxError, match=r"weights\.h5 answered 404 Not Found"):
        fetch(server, tmp_path)
    assert len(server.requested_ranges) == 1
    assert list(tmp_path.iterdir()) == []


def test_busy_server_is_asked_again(server, tmp_path):
    server.statuses = (503, 429)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_giving_up_keeps_what_arrived(server, tmp_path):
    server.cuts_after = (4 << 16, 0, 0, 0)
    with pytest.raises(CapjaxError, match=r"run the command again to go on from 262,144 bytes"):
        fetch(server, tmp_path)
    assert (tmp_path / "weights.h5.part").read_bytes() == CONTENT[: 4 << 16]
    assert not (tmp_path / "weights.h5").exists()


def test_nobody_there(tmp_path):
    with Server() as stopped:
        url = stopped.url
    with pytest.raises(CapjaxError, match=f"cannot download {url}"):
        download.fetch(download.PublishedFile(url, MD5), tmp_path, num_attempts=2, pause_seconds=0.01)


def test_unwritable_cache_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CapjaxError, match="cannot store"):
        fetch(server, tmp_path / "file")


def test_pinned_files_are_those_in_the_source_of_keras():
    keras_module = pytest.importorskip("keras.src.applications.inception_v3")
    import inspect

    source = inspect.getsource(keras_module.InceptionV3)
    assert download.PUBLISHED["keras"].url == keras_module.WEIGHTS_PATH_NO_TOP
    assert download.PUBLISHED["keras_top"].url == keras_module.WEIGHTS_PATH
    for published in download.PUBLISHED.values():
        name = published.url.rsplit("/", 1)[-1]
        after = source[source.index(f'"{name}"') :]
        assert after[after.index('file_hash="') :].startswith(f'file_hash="{published.md5}"')
