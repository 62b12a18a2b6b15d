"""Downloads from a server on the loopback interface that misbehaves in the ways real ones do."""

import contextlib
import hashlib
import http.server
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from capjax.errors import CapjaxError
from capjax.host import download
from capjax.host.download import RemoteFile

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; the attributes say how well."""

    content = CONTENT
    serves_ranges = True
    content_range = "bytes {start}-{last}/{size}"
    most_bytes = len(CONTENT)  # in one part
    cuts_after = ()  # bytes after which the first, second, … connection breaks
    statuses = ()  # statuses of the first, second, … answers, instead of serving
    gate = None  # an event that the first answer waits for in the middle

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
        size = len(server.content)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.serves_ranges else 0
        if start and start >= size:
            self.send_error(416)
            return
        body = server.content[start:]
        if start:
            body = body[: server.most_bytes]
            self.send_response(206)
            last = start + len(body) - 1
            self.send_header("Content-Range", server.content_range.format(start=start, last=last, size=size))
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts_after[attempt] if attempt < len(server.cuts_after) else len(body)
        with contextlib.suppress(ConnectionError):  # a client that has had enough
            if attempt == 0 and server.gate:
                self.wfile.write(body[: size // 2])
                server.gate.wait(60)
                body, cut = body[size // 2 :], cut - size // 2
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


@pytest.fixture(params=["pinned by SHA-256 and size", "pinned by MD5"])
def file(request, server):
    """The file as the server should have it, with all that its publisher may say and with the least."""
    return RemoteFile(server.url, MD5) if "MD5" in request.param else RemoteFile(server.url, SHA256, len(CONTENT))


def fetch(file, folder):
    return download.fetch(file, folder, num_attempts=3, pause_seconds=0.01)


@pytest.mark.parametrize("end", ["", "/", "?download=1"])
def test_file_is_called_like_the_end_of_its_address(end):
    assert RemoteFile(f"https://example.org/a/b.zip{end}", MD5).file_name == "b.zip"


def test_file_is_fetched_once(server, file, tmp_path, capsys):
    path = fetch(file, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert fetch(file, tmp_path / "new" / "folder") == path
    assert server.requested_ranges == [None]
    assert [file.name for file in path.parent.iterdir()] == ["weights.h5"]
    assert capsys.readouterr() == ("", "")


def test_interrupted_transfer_goes_on_where_it_stopped(server, file, tmp_path):
    server.cuts_after = (4 << 16, 0, 3 << 16)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == [None, "bytes=262144-", "bytes=262144-", "bytes=458752-"]


def test_progress_is_counted_from_the_furthest_point(server, file, tmp_path):
    server.serves_ranges = False
    server.cuts_after = (4 << 16, 1 << 16, 2 << 16)
    with pytest.raises(CapjaxError, match="run the command again"):
        fetch(file, tmp_path)


def test_a_later_run_goes_on_where_an_earlier_one_stopped(server, file, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT[:700_000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-"]


def test_complete_part_needs_no_more_bytes(server, file, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT)
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_server_without_ranges_starts_over(server, file, tmp_path):
    server.serves_ranges = False
    (tmp_path / "weights.h5.part").write_bytes(b"x" * 700_000)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-"]


def test_server_that_sends_less_than_the_rest_is_asked_for_more(server, file, tmp_path):
    server.most_bytes = 200_000
    (tmp_path / "weights.h5.part").write_bytes(CONTENT[:700_000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-", "bytes=900000-"]


@pytest.mark.parametrize("content_range", ["bytes 5-{last}/{size}", "bytes 0"])
def test_another_part_than_the_asked_one_is_not_taken(server, file, tmp_path, content_range):
    server.content_range = content_range
    (tmp_path / "weights.h5.part").write_bytes(CONTENT[:700_000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-", None]


def test_part_of_unknown_total_is_taken(server, file, tmp_path):
    server.content_range = "bytes {start}-{last}/*"
    (tmp_path / "weights.h5.part").write_bytes(CONTENT[:700_000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=700000-"]


def test_wrong_content_is_refused_and_deleted(server, file, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    algorithm = file.digest.partition(":")[0]
    found = f"{algorithm}:{hashlib.new(algorithm, server.content).hexdigest()}"
    with pytest.raises(CapjaxError, match=f"with {file.digest}, got {found}; it was deleted"):
        fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_size_is_refused_before_the_transfer(server, tmp_path):
    server.content = CONTENT + b"more"
    with pytest.raises(CapjaxError, match=r"expected 1,048,576 bytes at .*, the server offers 1,048,580"):
        fetch(RemoteFile(server.url, SHA256, len(CONTENT)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_part_is_refused_once_and_fetched_anew(server, file, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(b"x" * 700_000)
    with pytest.raises(CapjaxError, match="run the command again"):
        fetch(file, tmp_path)
    assert fetch(file, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], CONTENT[:-1] + b"!"], ids=["short", "wrong"])
def test_damaged_file_is_replaced(server, file, tmp_path, damaged):
    (tmp_path / "weights.h5").write_bytes(damaged)
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_large_file_is_known_by_its_size(server, tmp_path):
    with open(tmp_path / "weights.h5", "wb") as stream:
        stream.truncate(2_000_000_000)  # takes no room
    file = RemoteFile(server.url, SHA256, 2_000_000_000)
    assert fetch(file, tmp_path) == tmp_path / "weights.h5"
    assert server.requested_ranges == []


def test_missing_file_is_final(server, file, tmp_path):
    server.statuses = (404,) * 9
    with pytest.raises(CapjaxError, match=r"weights\.h5 answered 404 Not Found"):
        fetch(file, tmp_path)
    assert len(server.requested_ranges) == 1
    assert list(tmp_path.iterdir()) == []


def test_busy_server_is_asked_again(server, file, tmp_path):
    server.statuses = (503, 429)
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_giving_up_keeps_what_arrived(server, file, tmp_path):
    server.cuts_after = (4 << 16, 0, 0, 0)
    with pytest.raises(CapjaxError, match=r"run the command again to go on from 262,144 bytes"):
        fetch(file, tmp_path)
    assert (tmp_path / "weights.h5.part").read_bytes() == CONTENT[: 4 << 16]
    assert not (tmp_path / "weights.h5").exists()


def test_nobody_there(tmp_path):
    with Server() as stopped:
        url = stopped.url
    with pytest.raises(CapjaxError, match=f"cannot download {url}: .*Connection refused; run") as error:
        fetch(RemoteFile(url, MD5), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["weights.h5", "ftp://127.0.0.1/weights.h5", "http://[/weights.h5", "///"])
def test_address_that_is_none_is_not_tried_again(tmp_path, url):
    with pytest.raises(CapjaxError, match="cannot download"):
        download.fetch(RemoteFile(url, MD5), tmp_path, pause_seconds=1e6)


def test_too_little_room_is_said_before_the_download(server, tmp_path):
    with pytest.raises(CapjaxError, match="room"):
        fetch(RemoteFile(server.url, SHA256, 10**18), tmp_path)
    assert server.requested_ranges == []


def test_disk_that_fills_up_is_one_line_and_keeps_what_arrived(server, file, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # acts as a disk that fills up
    try:
        with pytest.raises(CapjaxError, match=r"cannot store .*weights\.h5: .*too large"):
            fetch(file, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.requested_ranges == [None, "bytes=500000-"]


def test_folder_that_cannot_be_made_is_one_line(server, file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CapjaxError, match="cannot store"):
        fetch(file, tmp_path / "file")


def start_process(file, folder):
    code = f"import pathlib; from capjax.host.download import *; print(fetch({file!r}, pathlib.Path({str(folder)!r})))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def two_processes(server, file, tmp_path):
    """One process in the middle of the download and another that waits for it."""
    server.gate = threading.Event()
    with start_process(file, tmp_path) as first:
        partial, until = tmp_path / "weights.h5.part", time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size >= len(CONTENT) // 2) and time.monotonic() < until:
            time.sleep(0.01)
        with start_process(file, tmp_path) as second:
            assert second.stderr.readline().startswith("waiting for another process that downloads ")
            yield first, second
            server.gate.set()


def test_of_two_processes_one_downloads_and_the_other_waits(server, two_processes, tmp_path):
    server.gate.set()
    for process in two_processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), err) == (0, str(tmp_path / "weights.h5"), "")
    assert (tmp_path / "weights.h5").read_bytes() == CONTENT
    assert server.requested_ranges == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.h5"]


def test_a_killed_process_leaves_its_part_to_the_one_that_waits(server, file, two_processes, tmp_path):
    first, second = two_processes
    os.kill(first.pid, signal.SIGKILL)
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out.strip(), err) == (0, str(tmp_path / "weights.h5"), "")
    assert (tmp_path / "weights.h5").read_bytes() == CONTENT
    assert len(server.requested_ranges) == 2 and server.requested_ranges[1] is not None
    assert [path.name for path in tmp_path.iterdir()] == ["weights.h5"]
