"""Models of the hub, from a server on loopback that answers as the hub does."""

import hashlib
import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from capjax.cli import main
from capjax.errors import CapjaxError
from capjax.hub import is_remote, model_folder

GOLDEN = pathlib.Path(__file__).parent / "golden" / "model_0_1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the model directory `golden/model_0_1/model`, and a file that nobody should fetch."""

    files = {path.name: path.read_bytes() for path in (GOLDEN / "model").iterdir()} | {"evil.py": b"import os"}
    asked: list[str]

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path in (f"/api/models/me/golden/revision/{name}" for name in ("main", "v1", COMMIT)):
            rows = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": "me/golden", "sha": COMMIT, "siblings": rows}).encode(), "application/json")
        elif path == f"/api/models/me/golden/tree/{COMMIT}":
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self.answer(json.dumps(rows).encode(), "application/json")
        elif path.startswith(f"/me/golden/resolve/{COMMIT}/") and path.rpartition("/")[2] in self.files:
            self.answer(self.files[path.rpartition("/")[2]], "application/octet-stream")
        else:
            code = "RepoNotFound" if "/me/golden" not in path else "RevisionNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub; `run` calls capjax as a process whose hub it is."""
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield lambda *args: subprocess.run(
        [sys.executable, "-m", "capjax", *args], capture_output=True, text=True, timeout=120
    )
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_captions_and_is_fetched_once(hub, capsys):
    photos = str(GOLDEN / "photos")
    assert main(["caption", f"--model={GOLDEN / 'model'}", photos]) == 0
    expected = capsys.readouterr().out
    first = hub("caption", "--model=hf://me/golden@v1", photos)
    assert (first.returncode, first.stdout) == (0, expected), first.stderr
    fetched = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
    assert fetched == {path.name for path in (GOLDEN / "model").iterdir()}, "the weights, and no programs"
    Hub.asked.clear()
    assert hub("caption", "--model=hf://me/golden@v1", photos).stdout == expected
    assert [path for path in Hub.asked if "/resolve/" in path] == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf://me/nothing", "expected to fetch hf://me/nothing, could not: .*404"),
        ("hf://me/golden@v9", "expected to fetch hf://me/golden@v9, could not: .*404"),
        ("hf://golden", "expected a model on the hub as hf://OWNER/NAME"),
    ],
)
def test_what_is_not_there_is_one_line(hub, model, message):
    done = hub("model", "show", model)
    assert done.returncode == 1
    assert re.search(f"^capjax: error: {message}", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_does_not_answer_is_one_line(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = hub("model", "show", "hf://me/golden")
    assert done.returncode == 1
    assert "capjax: error: expected to fetch hf://me/golden, could not" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CapjaxError, match=r"pip install 'capjax\[hub\]'"):
        model_folder("hf://me/golden")


def test_a_card_is_not_written_into_the_cache_of_the_hub(capsys):
    assert main(["model", "card", "hf://me/golden"]) == 1
    assert "expected a folder to write the card to" in capsys.readouterr().err


def test_a_run_starts_from_a_model_of_the_hub_and_nothing_is_written_beside_it(hub):
    """In a process of its own, since the hub's library reads its address but once."""
    code = f"""
import pathlib, flax.traverse_util
from capjax.captioning.loaded_model import load_model
from capjax.training_run.setup import _load_start
here = load_model({str(GOLDEN / "model")!r})
config = here.config.copy_and_resolve_references()
with config.unlocked():
    config.train.init_from = "hf://me/golden@v1"
start = _load_start(config)
assert start.vocabulary.words == here.vocabulary.words
theirs, ours = (flax.traverse_util.flatten_dict(model.variables) for model in (start, here))
assert theirs.keys() == ours.keys() and all((theirs[name] == ours[name]).all() for name in ours)
assert load_model("hf://me/golden@v1").workdir == pathlib.Path()
assert here.workdir == pathlib.Path({str(GOLDEN)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert any("/resolve/" in path for path in Hub.asked)


def test_folders_are_folders():
    assert not is_remote("runs/model")
    assert model_folder("runs/model") == pathlib.Path("runs/model")
