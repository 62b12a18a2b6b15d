"""`capjax serve` as a process: it says where it is, ends when asked, and says in one line why it cannot start."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from capjax.cli import main
from tests.captioning.test_loaded_model import change
from tests.serving.running import GOLDEN, PHOTOS
from tests.tiny_runs import free_port

SMALL = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}


@contextlib.contextmanager
def process(*flags: str, env: dict[str, str] = SMALL) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server on a port of its own; yield it and its address once it is ready."""
    command = [sys.executable, "-m", "capjax", "serve", f"--model={GOLDEN / 'model'}", "--port=0", "--max_batch=1"]
    running = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )  # fmt: skip
    try:
        line = running.stdout.readline()
        assert line.startswith(f"capjax serves {GOLDEN / 'model'} at http://127.0.0.1:"), running.communicate()
        yield running, line.split()[-1]
    finally:
        running.kill()
        running.communicate()


def start_upload(address: str, photo: bytes) -> socket.socket:
    """Send all of an upload but its last byte."""
    url = httpx.URL(address)
    connection = socket.create_connection((url.host, url.port), timeout=60)
    head = f"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(photo)}"
    connection.sendall(head.encode() + b"\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    connection.sendall(photo[:-1])
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_what_it_has_accepted_and_ends_well(tmp_path: pathlib.Path, number: int) -> None:
    photo = PHOTOS[0].read_bytes()
    flags = ("--beam_size=3", "--public_host=a.example,photos.example")
    with process(*flags, env={**SMALL, "TMPDIR": str(tmp_path)}) as (running, address):
        assert httpx.get(address + "readyz").json() == {"status": "ready"}
        assert httpx.get(address + "readyz", headers={"Host": "photos.example"}).status_code == 200
        assert httpx.get(address + "readyz", headers={"Host": "other.example"}).status_code == 403
        assert httpx.get(address + "v1/model").json()["search"]["beam_size"] == 3
        assert httpx.post(address + "v1/captions", files={"image": photo * 2000}).status_code == 200
        with start_upload(address, photo) as connection:
            running.send_signal(number)
            url = httpx.URL(address)
            while True:  # until nobody is let in any more
                try:
                    socket.create_connection((url.host, url.port), timeout=60).close()
                except ConnectionResetError:  # it closed the door while this one was on the way
                    continue
                except ConnectionRefusedError:
                    break
            connection.sendall(photo[-1:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ") and b"there is a red circle" in answer
        out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (0, "")
        assert "capjax" not in err and "Traceback" not in err  # XLA may say what it thinks of the machine
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_it_compiles_ends_it_well(tmp_path: pathlib.Path, number: int) -> None:
    port = free_port()
    command = [sys.executable, "-m", "capjax", "serve", f"--model={GOLDEN / 'model'}", f"--port={port}"]
    environment = {**SMALL, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}  # where nothing is compiled yet
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as running:
        status = None
        while status is None:
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"http://127.0.0.1:{port}/readyz").status_code
        assert status == 503
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (0, "")
    assert "capjax" not in err and "Traceback" not in err


@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
def test_it_serves_whether_or_not_its_output_is_read(output: str) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "capjax",
        "serve",
        f"--model={GOLDEN / 'model'}",
        f"--port={port}",
        "--max_batch=1",
    ]
    shell = ["bash", "-c", f'exec "$0" "$@" {output}', *command]
    running = subprocess.Popen(shell, stderr=subprocess.PIPE, text=True, env=SMALL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            time.sleep(0.2)
        assert httpx.get(f"{address}/healthz").status_code == 200
        files = {"image": PHOTOS[0].read_bytes()}
        answer = httpx.post(f"{address}/v1/captions", files=files, data={"beam_size": 2}, timeout=120)
        assert answer.status_code == 200, answer.text
        running.terminate()
        assert "Traceback" not in running.communicate(timeout=60)[1]
    finally:
        running.kill()


def test_who_never_ends_a_request_does_not_keep_it_from_ending() -> None:
    with process("--answer_seconds=0.5", "--body_seconds=2") as (running, address), start_upload(address, bytes(1000)):
        running.terminate()
        running.communicate(timeout=60)
        assert running.returncode == 0


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", f"--model={GOLDEN / 'model'}", f"--port={port}"]) == 1
    assert capsys.readouterr().err == (
        f"capjax: error: expected to listen on 127.0.0.1 port {port}, could not: Address already in use; "
        "choose another --port\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port=70000"], "port 70000"),
        (["--host=no.such.host.invalid"], "expected to listen on no.such.host.invalid port 0"),
        (["--max_queue=0"], "expected max_queue above 0, got 0"),
        (["--beam_size=0"], "beam_size lies in"),
        (["--must_contain=elephant"], "elephant"),
    ],
)
def test_flags_that_cannot_be_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"--model={GOLDEN / 'model'}", "--port=0", *flags]) == 1
    told = capsys.readouterr().err
    assert told.startswith("capjax: error: ") and message in told and told.count("\n") == 1


def test_a_model_without_an_encoder_is_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from capjax import serve
    from capjax.captioning.loaded_model import load_model

    monkeypatch.setattr(serve, "load_model", lambda path: replace(load_model(path), encoder=None))
    assert main(["serve", f"--model={GOLDEN / 'model'}", "--port=0"]) == 1
    assert "has no encoder to look at photos with; capjax evaluate" in capsys.readouterr().err


def test_a_damaged_model_is_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    change(tmp_path / "model" / "model.json", lambda header: header.pop("config"))
    assert main(["serve", f"--model={tmp_path / 'model'}", "--port=0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_package_that_is_lacking_is_named(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("capjax.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", f"--model={GOLDEN / 'model'}", "--port=0"]) == 1
    assert capsys.readouterr().err == (
        "capjax: error: capjax serve needs prometheus_client: pip install 'capjax[serve]'\n"
    )


def test_its_help_tells_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    assert "--max_request_bytes" in told and "20,000,000" in told and "--beam_size" in told


def test_a_second_ctrl_c_ends_it_at_once_without_a_word() -> None:
    with process() as (running, address), start_upload(address, bytes(1000)):
        running.send_signal(signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            while True:  # until the first is heeded
                httpx.get(address + "healthz")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
        assert (running.returncode, out) == (0, "") and "Traceback" not in err, err
