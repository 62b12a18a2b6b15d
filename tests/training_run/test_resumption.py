"""Runs that stop go on as if they had not: exactly, after kills and signals, in one process at a time."""

import contextlib
import copy
import json
import os
import pathlib
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from capjax import config as configuration
from capjax.checkpoint import Checkpoints
from capjax.config.fields import flat
from capjax.distributed import stop_requests
from capjax.errors import CapjaxError
from capjax.model_directory import load_model_directory
from capjax.sharding import make_mesh
from capjax.train import train
from capjax.training.log_window import LogWindow
from capjax.training.metric_writer import MetricWriter
from capjax.training.progress import Progress
from capjax.training_run import resumption
from capjax.training_run.objectives import make_objective
from capjax.training_run.setup import setup_from
from capjax.training_run.validation import Validation
from tests.tiny_runs import (
    finish,
    read_jsonl,
    read_until,
    saved_step,
    start_capjax,
    start_processes,
    tiny_config,
    write_config_file,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "workdir_0_1"


class Killed(BaseException):
    """What nothing catches."""


def train_until_killed(config, workdir, monkeypatch):
    """Train; the run ends in the middle of step 7, as if it were killed."""

    def add(window, step, metrics):
        if step == 7:
            raise Killed
        add_to(window, step, metrics)

    add_to = LogWindow.add
    with monkeypatch.context() as patch:
        patch.setattr(LogWindow, "add", add)
        with pytest.raises(Killed):
            train(config, workdir)


def assert_equal_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    jax.tree.map(np.testing.assert_array_equal, a.opt_state, b.opt_state)


@pytest.mark.parametrize("stop_at", [3, 8])
def test_resuming_is_exact(store, finished, tmp_path, stop_at):
    config = tiny_config(store)
    config.train.num_steps = stop_at
    train(config, tmp_path)
    state = train(tiny_config(store), tmp_path)
    assert_equal_params(jax.device_get(state), finished[1])
    steps = [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.learning_rate": 0.5}, r"optimizer\.learning_rate = 0\.02"),
        ({"train.ema_decay": 0.9}, r"train\.ema_decay = 0\.0"),
        ({"optimizer.name": "sgd"}, r"optimizer\.name = 'adam'"),
        ({"seed": 1}, r"seed = 0"),
        ({"train.batch_size": 32}, r"train\.batch_size = 16"),
        ({"train.captions_per_image": 2}, r"train\.captions_per_image = 1"),
        ({"eval.max_images": 3}, r"eval\.max_images = 5000"),
        ({"search.max_length": 3}, r"search\.max_length = 20"),
    ],
)
def test_other_configuration_is_refused_on_resume(store, finished, tmp_path, change, message):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    config = tiny_config(store)
    config.update_from_flattened_dict(change)
    with pytest.raises(CapjaxError, match=message):
        train(config, workdir)


def test_what_may_change_on_resume(tmp_path):
    """All that leaves the course of training, and what its validations are compared by, as they were."""
    begun, free = configuration.to_dict(configuration.default_config()), set()
    for name in flat(configuration.default_config()):
        *section, field = name.split(".")
        resumed = copy.deepcopy(begun)
        (resumed[section[0]] if section else resumed)[field] = "another value"
        with contextlib.suppress(CapjaxError):
            resumption._check_same_run(begun, resumed, tmp_path, resumption.PLACES)
            free.add(name)
    search = {name for name in free if name.startswith("search.")}
    assert search == {f"search.{name}" for name in set(begun["search"]) - {"max_length"}}
    assert sorted(free - search) == [
        "dataset.data_dir",
        "encoder.weights",
        "eval.batch_size",
        "eval.best_metric",
        "eval.every",
        "eval.patience",
        "features.batch_size",
        "features.dir",
        "log.histograms",
        "log.num_pictures",
        "mesh.model_parallel",
        "recipe",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.num_steps",
        "train.num_workers",
    ]


def test_a_start_may_lie_elsewhere_and_must_not_come_or_go():
    begun = {"train": {"init_from": "runs/start"}}
    resumption._check_same_run(begun, {"train": {"init_from": "/runs/start/"}}, pathlib.Path("x"), resumption.PLACES)
    for old, new, places in ((begun, {"train": {"init_from": ""}}, resumption.PLACES), (begun, {"train": {}}, ())):
        with pytest.raises(CapjaxError, match=r"expected train\.init_from = 'runs/start'"):
            resumption._check_same_run(old, new, pathlib.Path("x"), places)


def test_a_model_that_was_moved_away_is_followed_by_the_present_one(store, tmp_path, monkeypatch, capsys):
    """Even where nothing is left to be trained, and for good, though no checkpoint is written since."""
    by_step = {6: 0.9, 12: 0.1}

    def scored(validation, state):
        scores, captions = scores_of(validation, state)
        return scores | {"val/CIDEr-D": by_step[int(state.step)]}, captions

    scores_of = Validation.__call__
    monkeypatch.setattr(Validation, "__call__", scored)
    train(tiny_config(store), tmp_path)
    assert load_model_directory(tmp_path / "model").scores["step"] == 6
    shutil.rmtree(tmp_path / "model")
    train(tiny_config(store), tmp_path)
    assert "the best model, of step 6, is no longer in" in capsys.readouterr().err
    assert load_model_directory(tmp_path / "model").scores["step"] == 12
    setup = setup_from(tiny_config(store), make_mesh())
    identity = setup.data_identity | Validation(setup).data_identity
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        _, progress, _ = resumption.restore(checkpoints, setup, identity, make_objective(setup).init())
    assert (progress.best_step, progress.best("CIDEr-D")) == (12, 0.1)


def test_fields_that_a_stored_configuration_lacks_had_their_defaults(store, finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    path = workdir / "checkpoints" / "12" / "host" / "metadata"
    host = json.loads(path.read_text())
    del host["config"]["train"]["label_smoothing"], host["config"]["self_critical"]
    path.write_text(json.dumps(host))
    assert int(train(tiny_config(store), workdir).step) == 12
    config = tiny_config(store)
    config.train.label_smoothing = 0.1
    with pytest.raises(CapjaxError, match=r"train\.label_smoothing = 0\.0"):
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


@pytest.mark.parametrize("content", ["{}", "[1]", "3", '{"config": 1}', '{"processes": []}'])
def test_values_of_another_shape_in_a_checkpoint_are_one_clear_error(store, finished, tmp_path, content):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    (workdir / "checkpoints" / "12" / "host" / "metadata").write_text(content)
    with pytest.raises(CapjaxError, match=r"checkpoints.*") as error:
        train(tiny_config(store), workdir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["run[lr=0.1]", "a\\b", os.fsdecode(b"bad\xff")])
def test_a_workdir_that_could_not_be_read_again_is_refused_before_the_first_step(store, tmp_path, name):
    with pytest.raises(CapjaxError, match="expected a folder for checkpoints whose path is UTF-8 and has no '\\['"):
        train(tiny_config(store), tmp_path / name)
    assert not list((tmp_path / name).glob("**/model.json"))


def test_the_last_line_tells_of_the_model_that_is_there(store, tmp_path, monkeypatch, capsys):
    """Killed at step 7 with the model of step 6, and begun again for 5 steps alone."""

    config = tiny_config(store)
    train_until_killed(config, tmp_path, monkeypatch)
    config.train.num_steps = 5
    monkeypatch.setattr(Progress, "after", lambda progress, step, scores, metric: progress)  # no better than before
    train(config, tmp_path)
    assert "at step 6; model in" in capsys.readouterr().err
    assert load_model_directory(tmp_path / "model").scores["step"] == 6


def test_a_log_line_that_a_kill_cut_in_two_is_whole(store, tmp_path, monkeypatch):
    """Checkpoints of steps 3, 6, 9 and log lines of 4, 8, 12."""

    config = tiny_config(store)
    config.train.checkpoint_every = 3
    train(config, tmp_path / "whole")
    train_until_killed(config, tmp_path / "killed", monkeypatch)
    train(config, tmp_path / "killed")
    logs = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    times = {"train/seconds", "train/words_per_second", "train/images_per_second"}
    logs = [[{name: row[name] for name in set(row) - times} for row in log] for log in logs]
    assert logs[0] == logs[1] and len(logs[0]) > 3


def wait_for(condition, *runs, seconds=240):
    """Wait until a condition holds, as long as the runs live."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert all(run.poll() is None for run in runs), [run.stderr.read()[-3000:] for run in runs]
        time.sleep(0.02)


def has_lines(log):
    return lambda: log.exists() and log.read_text().count("\n") > 0


def endless(store, tmp_path):
    """Write a configuration that trains for hours and saves only when it is stopped."""
    config_file = write_config_file(tmp_path / "config.py", store)
    forever = [f"--config.{name}=1000000" for name in ("train.num_steps", "train.checkpoint_every", "eval.every")]
    return ["train", f"--config={config_file}", *forever]


def test_killed_at_a_random_moment_it_resumes_to_the_same_parameters(store, tmp_path):
    config_file = write_config_file(tmp_path / "config.py", store)
    command = ["train", f"--config={config_file}", "--config.train.num_steps=60"]
    command += ["--config.train.checkpoint_every=3", "--config.eval.every=60"]
    checkpoints = tmp_path / "killed" / "checkpoints"
    whole = start_capjax(*command, f"--workdir={tmp_path / 'whole'}")
    killed = start_capjax(*command, f"--workdir={tmp_path / 'killed'}")
    wait_for(lambda: any(path.name.isdigit() for path in checkpoints.glob("*")), killed)
    time.sleep(random.Random(0).random() * 0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it ended before it could be killed"

    (said, _) = finish(start_capjax(*command, f"--workdir={tmp_path / 'killed'}"), whole)
    assert "resuming" in said
    a, b = (load_model_directory(tmp_path / name / "model") for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
    assert not list(checkpoints.glob("*tmp*"))


def test_a_signal_saves_and_the_same_command_goes_on(store, tmp_path):
    workdir = tmp_path / "run"
    run = start_capjax(*endless(store, tmp_path), f"--workdir={workdir}")
    wait_for(has_lines(workdir / "metrics.jsonl"), run)
    run.send_signal(signal.SIGTERM)
    (said,) = finish(run, status=75)
    assert "which is saved; the same command goes on" in said
    assert "Traceback" not in said
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    assert f"interrupted after step {saved}," in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_saves_the_same_step_on_both(store, tmp_path, number):
    workdir = tmp_path / "run"
    runs = start_processes(*endless(store, tmp_path), f"--workdir={workdir}")
    wait_for(has_lines(workdir / "metrics.jsonl"), *runs)
    runs[1].send_signal(number)
    said = finish(*runs, status=75)
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    for text in said:
        assert f"interrupted after step {saved}, which is saved" in text
        assert "Traceback" not in text
    # It goes on, here with one process, from the next batch.
    config = tiny_config(store)
    config.train.num_steps = saved + 1
    config.train.checkpoint_every = config.eval.every = 1_000_000
    assert int(train(config, workdir).step) == saved + 1


def test_a_signal_while_a_run_of_two_processes_resumes_is_heeded(store, finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    runs = start_processes(*endless(store, tmp_path), f"--workdir={workdir}")
    read_until(runs[0], "parameters;")
    runs[1].send_signal(signal.SIGTERM)
    said = finish(*runs, status=75)
    saved = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    assert 12 < saved < 100
    for text in said:
        assert f"interrupted after step {saved}, which is saved" in text


def test_a_second_signal_has_its_usual_effect():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background may begin without one
    with stop_requests() as stop_requested:
        assert not stop_requested(1)
        signal.raise_signal(signal.SIGINT)
        assert stop_requested(2) and stop_requested(3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_to_the_workers_as_well_saves(store, tmp_path):
    """As Ctrl-C in a terminal gives it."""
    workdir = tmp_path / "run"
    run = start_capjax(
        *endless(store, tmp_path), "--config.train.num_workers=1", f"--workdir={workdir}", own_group=True
    )
    wait_for(has_lines(workdir / "metrics.jsonl"), run)
    os.killpg(run.pid, signal.SIGINT)
    (said,) = finish(run, status=75)
    assert "which is saved; the same command goes on" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("at_step", [6, 12])
def test_a_validation_that_a_signal_cut_off_is_made_up_for(store, finished, tmp_path, monkeypatch, at_step):
    """Step 6 has a validation; step 12 is the last."""

    @contextlib.contextmanager
    def stop_at_step():
        yield lambda step: step == at_step

    with monkeypatch.context() as patch:
        patch.setattr("capjax.train.stop_requests", stop_at_step)
        with pytest.raises(CapjaxError, match=f"interrupted after step {at_step}, which is saved"):
            train(tiny_config(store), tmp_path)
    state = train(tiny_config(store), tmp_path)
    assert_equal_params(jax.device_get(state), finished[1])
    rows, expected = (read_jsonl(path / "metrics.jsonl") for path in (tmp_path, finished[0]))
    validations, expected = ([row for row in log if "val/loss" in row] for log in (rows, expected))
    assert validations == expected
    assert load_model_directory(tmp_path / "model").scores == load_model_directory(finished[0] / "model").scores


def test_a_model_kept_at_a_step_that_was_saved_before_stays_best_when_the_run_is_extended(store, tmp_path, monkeypatch):
    """Its validation is in no checkpoint: the run was told to stop at its last step, and ended when it went on."""
    by_step = {6: 0.1, 8: 0.9, 12: 0.5}

    def scored(validation, state):
        scores, captions = scores_of(validation, state)
        return scores | {"val/CIDEr-D": by_step[int(state.step)]}, captions

    @contextlib.contextmanager
    def stop_at_step_8():
        yield lambda step: step == 8

    scores_of = Validation.__call__
    monkeypatch.setattr(Validation, "__call__", scored)
    config = tiny_config(store)
    config.train.num_steps = 8
    with monkeypatch.context() as patch:
        patch.setattr("capjax.train.stop_requests", stop_at_step_8)
        with pytest.raises(CapjaxError, match="interrupted after step 8"):
            train(config, tmp_path)
    train(config, tmp_path)
    config.train.num_steps = 12
    train(config, tmp_path)
    assert load_model_directory(tmp_path / "model").scores["step"] == 8
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [6, 8, 12]


def test_a_model_kept_after_the_newest_checkpoint_is_validated_again(store, finished, tmp_path, monkeypatch):
    """Killed at step 7: the model is of step 6, the checkpoint of step 4."""

    train_until_killed(tiny_config(store), tmp_path, monkeypatch)
    assert load_model_directory(tmp_path / "model").scores["step"] == 6
    assert saved_step(tmp_path / "checkpoints") == 4
    train(tiny_config(store), tmp_path)
    rows, expected = (read_jsonl(path / "metrics.jsonl") for path in (tmp_path, finished[0]))
    validations, expected = ([row for row in log if "val/loss" in row] for log in (rows, expected))
    assert validations == expected


def test_step_0_stands_once_in_the_log_of_a_run_that_began_twice(tmp_path):
    for value in (1.0, 2.0):  # killed before it saved anything
        with MetricWriter(tmp_path, 0) as log:
            log.write(0, {"val/loss": value})
    assert [row["val/loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [2.0]


def test_another_metric_may_choose_the_model_in_a_resumed_run(store, tmp_path):
    config = tiny_config(store)
    config.eval.best_metric = "accuracy"  # at most 1, where a loss starts above 2
    config.train.num_steps = 6
    train(config, tmp_path)
    config.eval.best_metric, config.train.num_steps = "loss", 60
    train(config, tmp_path)
    losses = {row["step"]: row["val/loss"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "val/loss" in row}
    best = min(losses, key=losses.get)
    assert best > 6
    assert load_model_directory(tmp_path / "model").scores["step"] == best


def test_progress_compares_like_with_like_and_a_tie_is_broken_by_the_loss():
    scores = [{"val/loss": a, "val/CIDEr-D": b} for a, b in ((3.0, 0.5), (3.0, 0.5), (2.5, 0.4), (2.9, 0.5))]
    progress = Progress()
    for step, row in enumerate(scores[:2], 1):
        progress = progress.after(step, row, "CIDEr-D")
    assert (progress.best_step, progress.validations_since_best, progress.validated_step) == (1, 1, 2)
    progress = Progress.from_dict(progress.to_dict() | {"from_another_version": 1})
    assert progress.after(4, scores[3], "CIDEr-D").best_step == 4
    progress = progress.after(3, scores[2], "loss")  # 2.5 against the 3.0 of the model that is kept
    assert (progress.best_step, progress.best("loss"), progress.validations_since_best) == (3, 2.5, 0)


def test_a_score_that_is_not_a_number_does_not_stay_best():
    progress = Progress()
    for step, loss, best_step in ((1, np.nan, 1), (2, np.nan, 1), (3, 2.0, 3), (4, np.nan, 3), (5, 1.0, 5)):
        progress = progress.after(step, {"val/loss": loss}, "loss")
        assert progress.best_step == best_step


def test_another_metric_has_its_own_patience(store, tmp_path):
    config = tiny_config(store)
    config.optimizer.learning_rate = 0.0
    config.eval.every, config.eval.patience, config.eval.best_metric = 2, 2, "loss"
    assert int(train(config, tmp_path).step) == 6
    config.eval.best_metric = "CIDEr-D"
    assert int(train(config, tmp_path).step) == 10


def test_a_workdir_of_capjax_0_1_goes_on(store, tmp_path):
    """Its last step was no multiple of eval.every, and its kept model is that of the validation before."""
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    kept, log = (workdir / "model" / "model.json").read_bytes(), read_jsonl(workdir / "metrics.jsonl")
    config = tiny_config(store)
    config.optimizer.learning_rate, config.eval.every, config.train.num_steps = 0.3, 3, 11
    assert int(train(config, workdir).step) == 11
    assert read_jsonl(workdir / "metrics.jsonl") == log
    assert (workdir / "model" / "model.json").read_bytes() == kept
    config.eval.every, config.train.num_steps = 1000, 13
    assert int(train(config, workdir).step) == 13
    rows = read_jsonl(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6, 9, 11, 13]
    assert rows[: len(log)] == log
    best = json.loads(kept)["scores"]
    assert (best["step"], rows[-1]["val/CIDEr-D"] < best["val/CIDEr-D"]) == (9, True)
    assert (workdir / "model" / "model.json").read_bytes() == kept


def exchange_captions(store):
    """Let the first two images with different captions have each other's."""
    path = store / "train" / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other = next(row for row in rows if row["captions"] != rows[0]["captions"])
    rows[0]["captions"], other["captions"] = other["captions"], rows[0]["captions"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def import_another(store):
    header = json.loads((store / "store.json").read_text())
    header["key"]["imported"] = "others"
    (store / "store.json").write_text(json.dumps(header))


def change_validation(store):
    path = store / "val" / "captions.jsonl"
    path.write_text(path.read_text().replace("one ", "any "))


def exchange_images(split):
    def change(store):
        (store / split / "images.sha256").write_text("f" * 64)

    return change


KNOWN_LATER = {"records_sha256", "images_sha256", "val_records_sha256", "val_images_sha256", "features"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (exchange_captions, "the training captions that"),
        (import_another, "features that"),
        (change_validation, "the validation captions that"),
        (exchange_images("train"), "the training images that"),
        (exchange_images("val"), "the validation images that"),
    ],
)
def test_other_data_is_refused_on_resume_unless_the_checkpoint_is_older(store, finished, tmp_path, change, message):
    workdir, elsewhere = tmp_path / "run", tmp_path / "store"
    shutil.copytree(finished[0], workdir)
    shutil.copytree(store, elsewhere)
    train(tiny_config(elsewhere), workdir)
    path = workdir / "checkpoints" / "12" / "host" / "metadata"
    host = json.loads(path.read_text())
    path.write_text(json.dumps(host | {"images_sha256": "e" * 64, "val_images_sha256": "e" * 64}))
    train(tiny_config(elsewhere), workdir)  # what is not known of one of both is not compared
    change(elsewhere)
    with pytest.raises(CapjaxError, match=message) as error:
        train(tiny_config(elsewhere), workdir)
    assert "\n" not in str(error.value)
    assert set(host) > KNOWN_LATER
    path.write_text(json.dumps({name: host[name] for name in set(host) - KNOWN_LATER}))
    assert int(train(tiny_config(elsewhere), workdir).step) == 12


@pytest.mark.parametrize("workers", [(0, 2), (2, 0)])
def test_the_number_of_workers_may_change(store, finished, tmp_path, workers):
    config = tiny_config(store)
    config.train.num_steps, config.train.num_workers = 5, workers[0]
    train(config, tmp_path)
    config.train.num_steps, config.train.num_workers = 12, workers[1]
    assert_equal_params(jax.device_get(train(config, tmp_path)), finished[1])


def test_a_second_run_in_a_workdir_is_refused_until_the_first_is_gone(store, tmp_path):
    workdir = tmp_path / "run"
    first = start_capjax(*endless(store, tmp_path), f"--workdir={workdir}")
    wait_for(has_lines(workdir / "metrics.jsonl"), first)
    with pytest.raises(CapjaxError, match=r"another process trains in .*--distributed") as error:
        train(tiny_config(store), workdir)
    assert "\n" not in str(error.value)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    config = tiny_config(store)
    config.train.num_steps = 1
    assert int(train(config, workdir).step) == 1, "a crash leaves no lock"


def test_a_repeated_validation_stands_once_in_the_log(tmp_path):
    with MetricWriter(tmp_path, 0) as log:
        for step in (4, 6, 8):
            log.write(step, {"train/loss": 1.0})
            log.write(step, {"val/loss": 1.0})
    with MetricWriter(tmp_path, first_step=6, validated_step=4) as log:
        log.write(6, {"val/loss": 2.0})
    rows = [(row["step"], *sorted(row)[1:], row.get("val/loss")) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [(step, value) for step, *_, value in rows] == [(4, None), (4, 1.0), (6, None), (6, 2.0)]


@struct.dataclass
class OlderState:
    step: jax.Array
    weights: dict


@struct.dataclass
class NewerState:
    step: jax.Array
    weights: dict
    average: dict


def test_a_checkpoint_that_lacks_a_newer_field_is_restored(tmp_path):
    weights = {"kernel": jnp.arange(4.0)}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, OlderState(jnp.asarray(3), weights), {"processes": [{"said": "once a process"}]})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        zeros = {"kernel": jnp.zeros(4)}
        host = checkpoints.read_host()
        state = checkpoints.read_state(NewerState(jnp.asarray(0), zeros, {"kernel": jnp.ones(4)}))
    assert host == {"said": "once a process"}
    assert int(state.step) == 3
    np.testing.assert_array_equal(state.weights["kernel"], weights["kernel"])
    np.testing.assert_array_equal(state.average["kernel"], 1.0)


def test_a_step_that_is_saved_already_is_refused(tmp_path):
    state = OlderState(jnp.asarray(3), {"kernel": jnp.arange(4.0)})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(3, state, {}, wait=True)
        for step in (2, 3):
            with pytest.raises(CapjaxError, match=f"after 3, the newest in .*, got {step}"):
                checkpoints.save(step, state, {})
        checkpoints.save(4, state, {}, wait=True)
