"""What fails under a run: every process says so soon, and the same command goes on once that is mended."""

import os
import shutil
import signal
import time

import numpy as np
import psutil
import pytest

from capjax.errors import CapjaxError
from capjax.train import train
from tests.tiny_runs import (
    assert_lost,
    finish,
    read_until,
    saved_step,
    start_capjax,
    start_processes,
    tiny_config,
    write_config_file,
)

pytestmark = pytest.mark.usefixtures("quick_children")


def endless(store, tmp_path):
    """Write a configuration that trains for hours and saves now and then."""
    config_file = write_config_file(tmp_path / "config.py", store)
    changes = ["train.num_steps=1000000", "eval.every=1000000", "train.checkpoint_every=20", "train.log_every=5"]
    return ["train", f"--config={config_file}", *(f"--config.{change}" for change in changes)]


def wait_for_checkpoint(workdir, run):
    while not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        assert run.poll() is None, run.stderr.read()[-3000:]
        time.sleep(0.02)


def assert_goes_on(store, workdir):
    """Do one more step than was saved, in this process."""
    saved = saved_step(workdir / "checkpoints")
    config = tiny_config(store)
    config.train.num_steps, config.eval.every = saved + 1, 1_000_000
    assert int(train(config, workdir).step) == saved + 1


def assert_one_error(said, message):
    (error,) = (line for line in said.splitlines() if line.startswith("capjax: error: "))
    assert message in error
    assert "Traceback" not in said


def test_a_shard_that_is_cut_off_under_one_of_two_processes_ends_both(store, tmp_path):
    own = tmp_path / "store"
    shutil.copytree(store, own)
    workdir, shard = tmp_path / "run", own / "train" / "pooled-00000.npy"
    special = {1: {"options": [f"--config.features.dir={own}"]}}
    first, second = start_processes(*endless(store, tmp_path), f"--workdir={workdir}", special=special)
    wait_for_checkpoint(workdir, first)
    os.truncate(shard, 200)
    said = second.communicate(timeout=90)[1]
    assert second.returncode == 1
    assert_one_error(said, f"{shard} is damaged (it ends before row")
    assert_lost(first)
    assert_goes_on(store, workdir)


def test_a_feature_that_is_not_finite_is_named_and_the_run_goes_on_when_it_is_mended(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    config = tiny_config(tmp_path / "store")
    config.train.num_steps = 6
    train(config, tmp_path / "run")
    shard = tmp_path / "store" / "train" / "pooled-00000.npy"
    whole, features = shard.read_bytes(), np.load(shard)
    features[13, 2] = np.inf
    np.save(shard, features)
    config.train.num_steps = 24
    with pytest.raises(CapjaxError, match=r"pooled-00000.npy is damaged \(row 13 has values that are not finite\)"):
        train(config, tmp_path / "run")
    assert saved_step(tmp_path / "run" / "checkpoints") == 6
    shard.write_bytes(whole)
    assert int(train(config, tmp_path / "run").step) == 24


def test_a_run_that_ends_with_an_error_leaves_no_captions_behind(store, tmp_path, monkeypatch):
    """Where tokenised captions cannot lie beside the others, they lie in a temporary folder."""
    own, temporary = tmp_path / "store", tmp_path / "temporary"
    shutil.copytree(store, own, ignore=shutil.ignore_patterns("captions.words"))
    temporary.mkdir()
    (own / "train" / "captions.words").write_text("in the way")
    shard = own / "train" / "pooled-00000.npy"
    features = np.load(shard)
    features[13, 2] = np.inf  # met by another thread, which holds what it reads from as the process ends
    np.save(shard, features)
    monkeypatch.setenv("TMPDIR", str(temporary))
    config_file = write_config_file(tmp_path / "config.py", own)
    (said,) = finish(start_capjax("train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"), status=1)
    assert_one_error(said, "values that are not finite")
    assert list(temporary.iterdir()) == []


def workers_of(run):
    """Find the worker processes of the input pipeline."""
    commands = {child: " ".join(child.cmdline()) for child in psutil.Process(run.pid).children()}
    return [child for child, command in commands.items() if "multiprocessing.spawn" in command]


def test_a_worker_that_is_killed_ends_the_run_and_a_run_that_is_killed_ends_its_workers(store, tmp_path):
    command = [*endless(store, tmp_path), "--config.train.num_workers=2"]
    runs = [start_capjax(*command, f"--workdir={tmp_path / name}") for name in ("one", "other")]
    for run, name in zip(runs, ("one", "other"), strict=True):
        wait_for_checkpoint(tmp_path / name, run)
    workers, orphans = map(workers_of, runs)
    workers[1].kill()
    runs[1].kill()
    (said,) = finish(runs[0], status=69)
    assert_one_error(said, "expected all worker processes of the input pipeline, one was killed")
    gone, alive = psutil.wait_procs([*workers, *orphans], timeout=60)
    assert len(gone) == 4 and not alive
    runs[1].communicate()
    assert_goes_on(store, tmp_path / "one")


# A disk that answers two thousand times and no more.
HANGING = """
import itertools, threading
from capjax.host import waiting
from capjax.cli import program
from capjax.data.feature_rows import FeatureRows
waiting.PATIENCE = 2
answers, read = itertools.count(), FeatureRows.__getitem__
def read_or_hang(self, i):
    return read(self, i) if next(answers) < 2000 else threading.Event().wait()
FeatureRows.__getitem__ = read_or_hang
program()
"""
IMPATIENT = """
from capjax.host import waiting
from capjax.cli import program
waiting.PATIENCE = 2
program()
"""


def test_a_disk_that_no_longer_answers_one_of_two_processes_is_told_by_both(store, tmp_path):
    special = {0: {"program": ("-c", IMPATIENT)}, 1: {"program": ("-c", HANGING)}}
    first, second = start_processes(*endless(store, tmp_path), f"--workdir={tmp_path / 'run'}", special=special)
    try:
        read_until(second, f"waiting for the next batch of the features in {store / 'train'} (does the disk answer?)")
        read_until(first, "another process of the run")
        second.kill()
        assert_lost(first)
    finally:
        first.kill()
        second.kill()
    assert_goes_on(store, tmp_path / "run")


def test_a_hanging_run_that_is_interrupted_twice_ends(store, tmp_path):
    run = start_capjax(*endless(store, tmp_path), f"--workdir={tmp_path / 'run'}", program=("-c", HANGING))
    read_until(run, "waiting for the next batch")
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    (said,) = finish(run, status=130)
    assert "capjax: interrupted" in said and "Traceback" not in said


# An ordinary user may not write to such folders anyway; root may, unless a process gives that up for itself.
WITHOUT_OVERRIDE = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "capjax", *sys.argv[1:]])
"""


def set_modes(root, folders, files):
    for path in [root, *root.rglob("*")]:
        path.chmod(folders if path.is_dir() else files)


def test_a_workdir_that_becomes_read_only_is_one_clear_error(store, tmp_path):
    workdir = tmp_path / "run"
    command = [*endless(store, tmp_path), f"--workdir={workdir}"]
    run = start_capjax(*command, program=("-c", WITHOUT_OVERRIDE))
    wait_for_checkpoint(workdir, run)
    (workdir / "checkpoints").chmod(0o555)
    (said,) = finish(run, status=1)
    assert_one_error(said, "expected to write a checkpoint to")
    assert "ermission denied" in said
    set_modes(workdir, 0o555, 0o444)
    (said,) = finish(start_capjax(*command, program=("-c", WITHOUT_OVERRIDE)), status=1)
    assert_one_error(said, f"cannot write to {workdir}: Permission denied")
    set_modes(workdir, 0o755, 0o644)
    assert_goes_on(store, workdir)


def test_a_file_where_checkpoints_belong_does_not_keep_a_failed_run_alive(store, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    run = start_capjax(*endless(store, tmp_path), f"--workdir={tmp_path / 'run'}")
    (said,) = finish(run, status=1)
    assert_one_error(said, "expected to write a checkpoint to")


# Process 0 alone says what is trained.
BUG = """
import capjax.train
from capjax.cli import program
def bug(*_):
    raise ZeroDivisionError("a bug")
capjax.train.announce = bug
program()
"""


def test_a_bug_in_one_of_two_processes_ends_both(store, tmp_path):
    command = [*endless(store, tmp_path), f"--workdir={tmp_path / 'run'}"]
    first, second = start_processes(*command, special={0: {"program": ("-c", BUG)}})
    said = first.communicate(timeout=90)[1]
    assert first.returncode == 1 and "ZeroDivisionError: a bug" in said
    assert_lost(second)
