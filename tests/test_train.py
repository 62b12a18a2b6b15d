"""The training loop: learns, resumes bit for bit, survives kills, is one run on any number of processes."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from capjax.checkpoint import load_model_directory
from capjax.errors import CapjaxError
from capjax.train import train
from tests.training_runs import make_store, tiny_config, write_config_file


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "store"
    make_store(path)
    return path


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    state = train(tiny_config(store), workdir)
    return workdir, jax.device_get(state)


def assert_equal_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    jax.tree.map(np.testing.assert_array_equal, a.opt_state, b.opt_state)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_and_model_of_a_run(finished):
    workdir, state = finished
    assert state.step == 12
    rows = read_jsonl(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8, 12]
    assert [row["step"] for row in rows if "val/loss" in row] == [6, 12]
    for row in rows:
        if "val/loss" in row:
            assert row["val/perplexity"] == pytest.approx(np.exp(row["val/loss"]))
            assert 0 <= row["val/accuracy"] <= 1
    model = load_model_directory(workdir / "model")
    assert model.encoder is None
    assert model.scores["step"] in (6, 12)
    assert list((workdir / "tensorboard").iterdir())


def test_learns_to_name_what_the_features_hold(store, tmp_path):
    config = tiny_config(store)
    config.train.num_steps = config.eval.every = 300
    train(config, tmp_path)
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    # The two captions of an image differ from their first word on: half the images' first words cannot be known.
    assert last["val/accuracy"] > 0.75
    assert last["val/CIDEr-D"] > 2.0


@pytest.mark.parametrize("stop_at", [3, 8])
def test_resuming_is_exact(store, finished, tmp_path, stop_at):
    config = tiny_config(store)
    config.train.num_steps = stop_at
    train(config, tmp_path)
    state = train(tiny_config(store), tmp_path)
    assert_equal_params(jax.device_get(state), finished[1])
    steps = [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert steps == sorted(set(steps))


def test_other_configuration_is_refused_on_resume(store, finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    config = tiny_config(store)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(CapjaxError, match=r"optimizer\.learning_rate = 0\.02"):
        train(config, workdir)


def test_truncated_checkpoint_is_one_clear_error_and_an_older_one_serves(store, finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    for file in (workdir / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CapjaxError, match="delete that folder") as error:
        train(tiny_config(store), workdir)
    assert "\n" not in str(error.value)
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert_equal_params(jax.device_get(train(tiny_config(store), workdir)), finished[1])


def test_loss_that_is_not_finite_stops_the_run(store, tmp_path):
    config = tiny_config(store)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e30
    with pytest.raises(CapjaxError, match="not finite at step"):
        train(config, tmp_path)
    assert list((tmp_path / "nonfinite").iterdir())


def test_early_stopping(store, tmp_path):
    config = tiny_config(store)
    config.optimizer.learning_rate = 0.0
    config.eval.every, config.eval.patience, config.eval.best_metric = 2, 2, "loss"
    assert int(train(config, tmp_path).step) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.batch_size": 12}, "multiple of the 8 devices"),
        ({"dataset.train_split": "trian"}, "trian"),
        ({"eval.best_metric": "CIDEr"}, "best_metric"),
        ({"features.dir": "/nowhere"}, "feature store"),
        ({"optimizer.name": "adamm"}, "optimizer.name"),
        ({"optimizer.schedule": "cosin"}, "schedule"),
        ({"decoder.name": "lstm"}, "decoder.name"),
        ({"train.dtype": "float8"}, "train.dtype"),
        ({"vocabulary.tokenizer": "spacy"}, "tokenizer"),
    ],
)
def test_wrong_settings_are_clear_errors(store, tmp_path, change, message):
    config = tiny_config(store)
    config.update_from_flattened_dict(change)
    with pytest.raises(CapjaxError, match=message) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def environment(**extra):
    return os.environ | {"PYTHONPATH": os.getcwd(), **extra}


def test_killed_at_a_random_moment_it_resumes_to_the_same_parameters(store, tmp_path):
    config_file = write_config_file(tmp_path / "config.py", store)
    command = [sys.executable, "-m", "capjax", "train", f"--config={config_file}", "--config.train.num_steps=60"]
    command += ["--config.train.checkpoint_every=3", "--config.eval.every=60"]

    def start(workdir):
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], env=environment(), stderr=subprocess.PIPE, text=True
        )

    killed = start(tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 240
    while (
        killed.poll() is None
        and time.monotonic() < deadline
        and not any(p.name.isdigit() for p in checkpoints.glob("*"))
    ):
        time.sleep(0.02)
    time.sleep(random.Random(0).random() * 0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it ended before it could be killed"

    resumed = start(tmp_path / "killed")
    assert resumed.wait(timeout=240) == 0
    assert "resuming" in resumed.stderr.read()
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=240) == 0
    a, b = (load_model_directory(tmp_path / name / "model") for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
    assert not list(checkpoints.glob("*tmp*"))


def test_signal_saves_and_the_same_command_goes_on(store, tmp_path):
    config_file = write_config_file(tmp_path / "config.py", store)
    command = [sys.executable, "-m", "capjax", "train", f"--config={config_file}", "--config.train.num_steps=100000"]
    command += ["--config.train.checkpoint_every=100000", "--config.eval.every=100000", f"--workdir={tmp_path / 'run'}"]
    run = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    log = tmp_path / "run" / "metrics.jsonl"
    while run.poll() is None and time.monotonic() < deadline and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "which is saved; the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_two_processes_train_like_one(store, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    config_file = write_config_file(tmp_path / "config.py", store)

    def start(workdir, devices, *processes):
        command = [sys.executable, "-m", "capjax", "train", f"--config={config_file}", f"--workdir={workdir}"]
        command += ["--config.decoder.dropout_rate=0.0", *processes]
        env = environment(JAX_NUM_CPU_DEVICES=str(devices))
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    together = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    runs = [start(tmp_path / "two", 2, *together, f"--process_id={i}") for i in range(2)]
    runs.append(start(tmp_path / "one", 1))
    for run in runs:
        _, stderr = run.communicate(timeout=300)
        assert run.returncode == 0, stderr[-2000:]
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        for name in set(a) - {"train/words_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    one, two = (load_model_directory(tmp_path / name / "model") for name in ("one", "two"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), one.variables, two.variables)
