"""The line an epoch that a person reads: worked by hand, compared with the log, and told once by a run that resumes."""

import contextlib
import itertools
import re

import numpy as np
import pytest

from capjax.errors import Interrupted
from capjax.train import train
from capjax.training.epoch_lines import EpochLines
from tests.tiny_runs import make_store, read_jsonl, tiny_config


def logged(step, loss, words=100.0, seconds=2.0, **more):
    return {
        "step": step,
        "train/loss": loss,
        "train/words_per_second": words / seconds,
        "train/seconds": seconds,
    } | more


def validated(step, loss, cider):
    return {"step": step, "val/loss": loss, "val/CIDEr-D": cider}


def told(lines, rows, ends=True):
    """Feed a log as a run does, and return what is said, without the time that is left, which depends on the clock."""
    said = []
    for step, group in itertools.groupby(rows, key=lambda row: row["step"]):
        for row in group:
            lines.add(step, row)
        said.append(lines.line(step, last=ends and step == rows[-1]["step"]))
    return [re.sub(r", [\d.]+ \w+ left", "", line) for line in said if line]


ROWS = [
    logged(4, 4.0),
    logged(8, 3.0, words=300),
    validated(10, 2.5, 0.5),
    logged(12, 2.0, words=100),
    logged(16, 1.5),
    logged(20, 1.0),
    validated(20, 1.25, 0.75),
    logged(24, 1.0),
    logged(25, 0.5),
]
TOLD = [
    "epoch 1 of 2.5 (step 12 of 25): loss 3.000, validation loss 2.500, CIDEr-D 0.500 at step 10, 83 words/s",
    "epoch 2 of 2.5 (step 20 of 25): loss 1.250, validation loss 1.250, CIDEr-D 0.750, 50 words/s",
    "epoch 2.5 of 2.5 (step 25 of 25): loss 0.750, 50 words/s",
]
"""Ten steps are an epoch; (400 + 900 + 200) / 500 words is 3.0."""


def test_an_epoch_worked_by_hand():
    assert told(EpochLines(25, 8, 80, eval_every=10), ROWS) == TOLD


@pytest.mark.parametrize("stop_at", [4, 8, 10, 12, 16, 20, 24])
def test_a_run_that_resumes_tells_each_epoch_once(stop_at):
    done, rest = ([row for row in ROWS if (row["step"] <= stop_at) == is_done] for is_done in (True, False))
    said = told(EpochLines(25, 8, 80, 10), done, ends=False)
    assert said + told(EpochLines(25, 8, 80, 10, stop_at, done), rest) == TOLD


def test_a_finished_run_has_nothing_to_add():
    assert EpochLines(25, 8, 80, 10, 25, ROWS).line(25, last=True) is None


def test_a_run_whose_log_is_lost_tells_no_epoch_again():
    rest = [row for row in ROWS if row["step"] > 16]
    assert told(EpochLines(25, 8, 80, 10, 16), rest) == [TOLD[1].replace("1.250", "1.000", 1), TOLD[2]]


def test_long_epochs_have_a_line_at_each_validation():
    rows = [validated(0, 3.0, 0.25), logged(4, 4.0), logged(8, 3.0), validated(8, 2.0, 0.5), logged(12, 1.0)]
    assert told(EpochLines(12, 1, 10, eval_every=8), rows) == [
        "epoch 0 of 1.2 (step 0 of 12): validation loss 3.000, CIDEr-D 0.250",
        "epoch 0.8 of 1.2 (step 8 of 12): loss 3.500, validation loss 2.000, CIDEr-D 0.500, 50 words/s",
        "epoch 1 of 1.2 (step 12 of 12): loss 2.667, 50 words/s",
    ]


def test_epochs_shorter_than_the_distance_of_log_lines_are_told_together_and_a_reward_instead_of_a_loss():
    rows = [logged(4, -0.1, **{"train/reward": 0.5}), logged(8, -0.1, **{"train/reward": 1.5})]
    assert told(EpochLines(8, 30, 60, eval_every=8), rows) == [
        "epochs 1 to 2 of 4 (step 4 of 8): reward 0.500, 50 words/s",
        "epochs 3 to 4 of 4 (step 8 of 8): reward 1.500, 50 words/s",
    ]


LINE = re.compile(
    r"epoch (?P<epoch>[\d.]+) of (?P<epochs>[\d.]+) \(step (?P<step>\d+) of 60\): loss (?P<loss>[\d.]+)"
    r"(, validation loss (?P<val_loss>[\d.]+), CIDEr-D (?P<cider>[\d.]+))?, (?P<speed>[\d,]+) words/s(, .* left)?"
)


@pytest.mark.parametrize("stop_at", [None, 37])
def test_what_a_run_says_is_what_it_logs(tmp_path, capsys, monkeypatch, stop_at):
    """96 images are 6 steps; a signal at step 37 parts the seventh epoch."""

    @contextlib.contextmanager
    def stop_at_step():
        yield lambda step: step == stop_at

    make_store(tmp_path / "store", num_images=96)
    config = tiny_config(tmp_path / "store")
    config.train.log_every, config.eval.every, config.train.num_steps = 2, 12, 60
    with monkeypatch.context() as patch, pytest.raises(Interrupted) if stop_at else contextlib.nullcontext():
        patch.setattr("capjax.train.stop_requests", stop_at_step)
        train(config, tmp_path / "run")
    if stop_at:
        train(config, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    matches = [LINE.fullmatch(line) for line in lines]
    assert [int(match["epoch"]) for match in matches] == list(range(1, 11))
    for match in matches:
        step = int(match["step"])
        assert (step, float(match["epochs"])) == (6 * int(match["epoch"]), 10)
        window = [row for row in rows if step - 6 < row["step"] <= step and "train/loss" in row]
        words = [row["train/words_per_second"] * row["train/seconds"] for row in window]
        mean = np.average([row["train/loss"] for row in window], weights=words)
        assert float(match["loss"]) == pytest.approx(mean, abs=6e-4)
        (scores,) = [row for row in rows if row["step"] == step and "val/loss" in row] or [None]
        assert (scores is None) == (match["cider"] is None) == (step % 12 != 0)
        if scores:
            assert float(match["val_loss"]) == pytest.approx(scores["val/loss"], abs=6e-4)
            assert float(match["cider"]) == pytest.approx(scores["val/CIDEr-D"], abs=6e-4)
