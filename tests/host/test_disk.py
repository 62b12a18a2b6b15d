"""Files appear whole or not at all, and names do not lead out of their folders."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from capjax.config import load_config
from capjax.data.feature_store import create_store
from capjax.errors import CapjaxError
from capjax.host.disk import (
    exclusive,
    inside,
    local_path,
    remove_leftovers,
    remove_temporary_folders,
    temporary_folder,
    write_atomically,
)
from capjax.model_directory import ModelDirectory, save_model
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from capjax.types import CaptionRecord


def test_writes_replace_and_leave_nothing_beside(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "new" / "page.html"
    write_atomically(target, b"first")
    write_atomically(target, b"second")
    assert target.read_bytes() == b"second"
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_the_home_directory_is_found_where_no_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config("flickr8k", ["features.dir=~/features"])
    assert [str(local_path("~/a")), config.features.dir] == ["/home/me/a", "/home/me/features"]
    assert [str(local_path(text)) for text in ("~nobody-of-this/a", "a/~/b")] == [
        "~nobody-of-this/a",
        "a/~/b",
    ]


def test_files_are_as_readable_as_any_other(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


def test_failing_writes_leave_what_was_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "earlier").write_bytes(b"kept")
    with pytest.raises(CapjaxError, match="cannot write"):
        write_atomically(tmp_path / "taken", b"x")
    assert (tmp_path / "taken" / "earlier").read_bytes() == b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(CapjaxError, match="cannot write"):
        write_atomically(tmp_path / "taken" / "earlier" / "below a file", b"x")


def test_links_stay_links_and_what_is_no_file_is_written_into(tmp_path: pathlib.Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    (tmp_path / "early").symlink_to("not there yet")
    write_atomically(tmp_path / "early", "a name that is no UTF-8: \udcff")
    assert (tmp_path / "early").is_symlink()
    assert (tmp_path / "not there yet").read_text() == "a name that is no UTF-8: \\udcff"
    reader, writer = os.pipe()  # by a link of the system's that leads to no path
    write_atomically(f"/dev/fd/{writer}", b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader), os.close(writer)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", ["one", b"two"])
    assert os.read(reader, 100) == b"onetwo" and (tmp_path / "pipe").is_fifo()
    os.close(reader)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link", "pipe", "early", "not there yet"}


def test_temporary_folders_go_with_their_object_or_all_at_once(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = temporary_folder("a-"), temporary_folder("b-")
    assert {path.name[:2] for path in tmp_path.iterdir()} == {"a-", "b-"}
    del first
    assert [path.name[:2] for path in tmp_path.iterdir()] == ["b-"]
    remove_temporary_folders()
    assert not list(tmp_path.iterdir()) and not pathlib.Path(second.name).exists()


def test_interrupted_writes_leave_nothing_beside(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_atomically(tmp_path / "page.html", b"first")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "page.html", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"first"


def killed_write(target: pathlib.Path, seconds_ago: float) -> pathlib.Path:
    """Leave what a process leaves that is killed while it writes."""
    code = (
        "import os, signal, sys; from capjax.host.disk import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(sys.argv[1], b'half')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == -signal.SIGKILL
    (left,) = (path for path in target.parent.glob(".*") if path.stat().st_mtime > time.time() - 60)
    os.utime(left, (time.time() - seconds_ago,) * 2)
    return left


def test_what_killed_writes_left_is_removed_after_a_while(tmp_path: pathlib.Path) -> None:
    own = tmp_path / ".notes.tmp"
    own.write_bytes(b"of the user")
    os.utime(own, (0, 0))
    old, new = (killed_write(tmp_path / "pooled-00000.npy", seconds_ago) for seconds_ago in (7200, 100))
    remove_leftovers(tmp_path)
    assert not old.exists() and new.exists() and own.exists(), "another process may be writing the newer one"
    remove_leftovers(tmp_path / "nowhere")


def test_what_killed_runs_left_is_removed_when_a_store_or_a_model_is_written(tmp_path: pathlib.Path) -> None:
    store, records = create_store(tmp_path / "store", {}, 3), [CaptionRecord(1, "1.jpg", ("a dog",))]
    store.begin_split("train", records)
    model = ModelDirectory({}, None, Vocabulary(SPECIAL_WORDS, "words"), {"params": {"w": np.zeros(3)}}, {})
    save_model(tmp_path / "model", model)
    left = [killed_write(tmp_path / "store" / "train" / "grid-00000.npy", 7200)]
    left += [killed_write(tmp_path / "model" / name, 7200) for name in ("model.json", "weights-0.safetensors")]
    store.begin_split("train", records)
    save_model(tmp_path / "model", model)
    assert not any(path.exists() for path in left)


def test_names_that_lead_out_of_a_folder_have_no_path(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "photos"
    assert inside(folder, "a/b.jpg") == folder / "a" / "b.jpg"
    assert inside(folder, "a/../b.jpg") == folder / "b.jpg"
    for name in ("../secret.jpg", "a/../../secret.jpg", "..", "x\0.jpg", str(tmp_path / "secret.jpg")):
        assert inside(folder, name) is None


def test_a_lock_is_held_by_one_and_free_again(tmp_path: pathlib.Path) -> None:
    with exclusive(tmp_path / "new" / "lock", "held"):
        with pytest.raises(CapjaxError, match="held"), exclusive(tmp_path / "new" / "lock", "held"):
            pass
    with exclusive(tmp_path / "new" / "lock", "held"):
        pass


def test_a_file_system_without_locks_is_one_clear_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CapjaxError, match=r"can lock .*No locks available.*choose a folder on another") as error:
        with exclusive(tmp_path / "lock", "held"):
            pass
    assert "\n" not in str(error.value)
