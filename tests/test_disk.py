"""Files appear whole or not at all, and names do not lead out of their folders."""

import errno
import fcntl
import os
import pathlib

import pytest

from capjax.disk import exclusive, inside, write_atomically
from capjax.errors import CapjaxError


def test_writes_replace_and_leave_nothing_beside(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "new" / "page.html"
    write_atomically(target, b"first")
    write_atomically(target, b"second")
    assert target.read_bytes() == b"second"
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


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
