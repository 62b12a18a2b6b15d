"""A disk that fills up: one clear line on every process, and what was saved before stays whole."""

import shutil

import jax
import numpy as np
import pytest

from capjax.model_directory import load_model_directory
from capjax.train import train
from tests.tiny_runs import (
    assert_lost,
    finish,
    make_store,
    read_jsonl,
    saved_step,
    start_capjax,
    start_processes,
    tiny_config,
    write_config_file,
)

pytestmark = pytest.mark.usefixtures("quick_children")

# No file may grow past 4,000 bytes: the system call fails as it does on a full disk. Pipes are not files.
# No compiled program is written: JAX would leave beginnings of them in the folder that all runs share.
FULL = """
import os, resource
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1000"
from capjax.cli import program
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
program()
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store, and a run on it."""
    root = tmp_path_factory.mktemp("finished")
    make_store(root / "store")
    train(tiny_config(root / "store"), root / "run")
    return root


def resume(root):
    config_file = write_config_file(root / "config.py", root / "store")
    return ["train", f"--config={config_file}", f"--workdir={root / 'run'}", "--config.train.num_steps=24"]


def go_on(root):
    config = tiny_config(root / "store")
    config.train.num_steps = 24
    return train(config, root / "run")


def assert_one_error(said, message):
    errors = [line for line in said.splitlines() if line.startswith("capjax: error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in said


@pytest.mark.parametrize(("eval_every", "message"), [(100, "write a checkpoint"), (6, "write a model")])
def test_full_disk_while_saving(finished, tmp_path, eval_every, message):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = load_model_directory(tmp_path / "run" / "model").variables

    command = [*resume(tmp_path), f"--config.eval.every={eval_every}"]
    (said,) = finish(start_capjax(*command, program=("-c", FULL)), status=1)
    assert_one_error(said, message)
    jax.tree.map(np.testing.assert_array_equal, load_model_directory(tmp_path / "run" / "model").variables, before)
    assert saved_step(tmp_path / "run" / "checkpoints") == 12


@pytest.mark.parametrize(("eval_every", "message"), [(100, "write a checkpoint"), (6, "write a model")])
def test_full_disk_of_one_of_two_processes_ends_both(finished, tmp_path, eval_every, message):
    """The other waits for it in a collective, or for the checkpoint to be whole."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    command = [*resume(tmp_path), f"--config.eval.every={eval_every}"]
    first, second = start_processes(*command, special={0: {"program": ("-c", FULL)}})
    said = first.communicate(timeout=90)[1]
    assert first.returncode == 1
    assert_one_error(said, message)
    assert_lost(second)
    assert saved_step(tmp_path / "run" / "checkpoints") == 12
    assert int(go_on(tmp_path).step) == 24


def test_full_disk_while_logging(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text().replace("\n", " " * 50_000 + "\n", 1))  # so that it is the largest of all files
    room = len(log.read_bytes()) + 100  # for less than a line
    command = [*resume(tmp_path), "--config.train.log_every=1", "--config.eval.every=100"]
    (said,) = finish(start_capjax(*command, program=("-c", FULL.replace("4000", str(room)))), status=1)
    assert_one_error(said, "the disk is full; free some and run the same command again")
    go_on(tmp_path)
    assert [row["step"] for row in read_jsonl(log) if "train/loss" in row] == [4, 8, 12, 16, 20, 24]


def test_full_disk_under_the_tensorboard_files(tmp_path):
    """The JSONL has room, which holds less."""
    write_much = """
import pathlib, resource, sys
from capjax.training.metric_writer import MetricWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
with MetricWriter(pathlib.Path(sys.argv[1]), first_step=0) as log:
    for step in range(100_000):
        log.write(step, {"a" * 40: 1.0})
"""
    (said,) = finish(start_capjax(str(tmp_path), program=("-c", write_much)), status=1)
    assert "CapjaxError: expected room to write" in said
