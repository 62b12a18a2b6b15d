"""Logs of killed runs can be read."""

import json
import logging
import math
import pathlib
import subprocess
import sys

import pytest

from capjax.errors import CapjaxError
from capjax.report import read_log


def test_a_torn_last_line_is_left_out(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "train/loss": 2.5}\n\n{"step": 2, "train/loss": NaN}\n{"step": 3, "tra')
    with caplog.at_level(logging.WARNING):
        records = read_log(path)
    assert [record["step"] for record in records] == [1, 2] and math.isnan(records[1]["train/loss"])
    assert not caplog.records


def test_lines_torn_before_a_resume_are_named(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    lines = ['{"step": 1}', '{"step": 2, "lo{"step": 2}', '{"step": 3}', '"no record"', '{"step": 4}']
    path.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        assert [record["step"] for record in read_log(path)] == [1, 3, 4]
    assert "line 2" in caplog.text and "line 4" in caplog.text


def test_a_missing_log_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CapjaxError, match="expected a training log at"):
        read_log(tmp_path / "none.jsonl")


def test_importing_the_report_is_cheap() -> None:
    heavy = ["jax", "matplotlib", "tensorflow_datasets"]
    code = f"import sys, json, capjax.report; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
