"""Waits that take long are told, once, and when they are over."""

import time

import pytest

from capjax.host import waiting
from capjax.host.waiting import waiting_for


def test_a_long_wait_is_told_once_and_when_it_is_over(capsys, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.2)
    said, deadline = "", time.monotonic() + 60
    with waiting_for("a disk"):
        while "waiting for a disk, for " not in said:
            assert time.monotonic() < deadline
            said += capsys.readouterr().err
            time.sleep(0.05)
        time.sleep(0.5)
        assert "waiting" not in capsys.readouterr().err
    assert "it came after" in capsys.readouterr().err


def test_what_is_over_is_told_no_more(capsys, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.2)
    with pytest.raises(ZeroDivisionError), waiting_for("a disk"):
        raise ZeroDivisionError
    time.sleep(0.5)
    assert capsys.readouterr().err == ""
