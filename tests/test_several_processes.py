"""Several processes are one run: the same batches, losses and updates, the same captions, the same features."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from capjax.checkpoint import Checkpoints
from capjax.errors import CapjaxError
from capjax.host import waiting
from capjax.host.disk import exclusive
from capjax.model_directory import load_model_directory
from capjax.sharding import make_mesh
from capjax.train import train
from capjax.training_run import resumption
from capjax.training_run.setup import setup_from
from tests.tiny_runs import (
    assert_lost,
    finish,
    free_port,
    make_store,
    read_jsonl,
    read_until,
    start_capjax,
    start_processes,
    tiny_config,
    write_config_file,
)

# A program that does not wait for a minute for what a network file system might show late.
SOON = "from capjax.cli import program; from capjax.host import waiting; waiting.SECONDS_TO_APPEAR = 3; program()"
IMPATIENT = {"program": ("-c", SOON)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "store"
    make_store(path, num_images=22)
    return path


@pytest.mark.usefixtures("quick_children")
def test_two_processes_train_like_one(store, tmp_path):
    """With dropout, which belongs to the caption: the same words are dropped wherever it lies."""
    config_file = write_config_file(tmp_path / "config.py", store)
    command = ["train", f"--config={config_file}", "--config.decoder.dropout_rate=0.3"]
    runs = start_processes(*command, f"--workdir={tmp_path / 'two'}", devices=2)
    finish(*runs, start_capjax(*command, f"--workdir={tmp_path / 'one'}"))
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        for name in set(a) - {"train/words_per_second", "train/seconds"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    one, two = (load_model_directory(tmp_path / name / "model") for name in ("one", "two"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), one.variables, two.variables)


def test_two_processes_evaluate_like_one(store, tmp_path):
    """Log-probabilities to the last digit: at this size products of another shape would be rounded otherwise."""
    config = tiny_config(store)
    config.decoder.hidden_size = config.decoder.logit_bottleneck_size = 192
    train(config, tmp_path / "run")
    command = ["evaluate", f"--model={tmp_path / 'run' / 'model'}", "--split=val", "--batch_size=64"]
    command += ["--metrics=CIDEr-D", "--bootstrap_samples=0"]
    runs = start_processes(*command, f"--out={tmp_path / 'two'}", devices=2)
    finish(*runs, start_capjax(*command, f"--out={tmp_path / 'one'}"))
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert sorted(row["image_id"] for row in two) == [1000 + i for i in range(22)]
    assert one == two
    scores = [(tmp_path / name / "per_image.jsonl").read_text() for name in ("one", "two")]
    assert scores[0] == scores[1]
    first, second = finish(*start_processes(*command, "--out=/proc/none"), status=1)
    assert "error: cannot write to /proc/none" in first and "error: process 0 could not go on" in second
    assert "Traceback" not in first + second and "Fatal" not in first + second


@pytest.mark.usefixtures("quick_children")
def test_both_of_two_processes_end_where_another_run_holds_the_workdir(store, tmp_path):
    config_file = write_config_file(tmp_path / "config.py", store)
    with exclusive(tmp_path / "run" / "lock", "held"):
        runs = start_processes("train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
        first, second = finish(*runs, status=1)
    assert "another process trains in" in first
    assert "process 0 could not go on" in second
    assert "Traceback" not in first + second


@pytest.mark.parametrize(
    ("of_second", "message"),
    [
        ("--config.seed=3", "the same configuration on all processes of the run, seed is another for process 1"),
        ("--config.features.dir={others}", "the same data on all processes of the run, records_sha256 is another"),
        ("--workdir={elsewhere}", "to be one folder that all processes of the run mount, process 1 does not find"),
    ],
    ids=["configuration", "data", "workdir"],
)
@pytest.mark.usefixtures("quick_children")
def test_processes_that_would_train_something_else_are_refused(store, tmp_path, of_second, message):
    make_store(tmp_path / "others", num_images=23)
    config_file = write_config_file(tmp_path / "config.py", store)
    option = of_second.format(others=tmp_path / "others", elsewhere=tmp_path / "elsewhere")
    command = ["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    runs = start_processes(*command, special={0: IMPATIENT, 1: IMPATIENT | {"options": [option]}})
    for said in finish(*runs, status=1):
        assert message in said
        assert "Traceback" not in said
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))


@pytest.mark.usefixtures("quick_children")
def test_models_and_options_that_differ_between_processes_are_refused(store, tmp_path):
    config = tiny_config(store)
    config.train.num_steps = config.eval.every = 1
    train(config, tmp_path / "0")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    header = json.loads((tmp_path / "1" / "model" / "model.json").read_text())
    (tmp_path / "1" / "model" / "model.json").write_text(json.dumps(header | {"scores": {"val/loss": 9.0}}))
    models = {i: IMPATIENT | {"options": [f"--model={tmp_path / str(i) / 'model'}"]} for i in (0, 1)}
    for said in finish(*start_processes("evaluate", "--split=val", special=models), status=1):
        assert "expected the same model in" in said and "it differs between them" in said
    options = {i: {"options": [f"--beam_size={2 + i}"]} for i in (0, 1)}
    command = ["evaluate", f"--model={tmp_path / '0' / 'model'}", "--split=val", f"--out={tmp_path / 'out'}"]
    for said in finish(*start_processes(*command, special=options), status=1):
        assert "the same options on all processes of the run, search is another for process 1" in said
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_a_network_disk_shows_late_are_waited_for(store, finished, tmp_path, monkeypatch):
    """Another process, whose answers are made up, has found one since; what never comes is refused."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    monkeypatch.setattr(waiting, "SECONDS_TO_APPEAR", 2)
    setup = setup_from(tiny_config(store), make_mesh())
    with Checkpoints(workdir / "checkpoints", 1) as checkpoints:
        found = [[12, 8], [12, 12]]
        monkeypatch.setattr(resumption, "gather_json", lambda step: found.pop(0))
        resumption.check_same_run_on_all(checkpoints, setup, setup.data_identity)
        assert found == []
        monkeypatch.setattr(resumption, "gather_json", lambda step: [step, 8])
        with pytest.raises(CapjaxError, match="process 0 finds 12, process 1 finds 8; name a workdir"):
            resumption.check_same_run_on_all(checkpoints, setup, setup.data_identity)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.usefixtures("quick_children")
def test_a_process_that_dies_or_hangs_ends_the_others_in_bounded_time(store, tmp_path, fate):
    """Collectives with a dead process fail or wait; with one that hangs they wait until signs of life are missed.

    A checkpoint is being written nearly always, by which Orbax has exchanges of its own.
    """
    config_file = write_config_file(tmp_path / "config.py", store)
    endless = ["--config.train.num_steps=1000000", "--config.train.checkpoint_every=1", "--config.eval.every=1000000"]
    runs = start_processes("train", f"--config={config_file}", *endless, f"--workdir={tmp_path / 'run'}")
    read_until(runs[0], "starting")
    time.sleep(3)
    runs[1].send_signal(fate)
    assert_lost(runs[0])
    runs[1].kill()


@pytest.mark.usefixtures("quick_children")
def test_a_process_with_an_error_does_not_wait_for_the_others_which_end_in_bounded_time(store, tmp_path):
    config_file = write_config_file(tmp_path / "config.py", store)
    together = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    command = ["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *together]
    first = start_capjax(*command, "--process_id=0")
    second = start_capjax(*command, "--process_id=1", f"--config.features.dir={tmp_path / 'vanished'}")
    said = second.communicate(timeout=90)[1]
    assert second.returncode == 1
    assert "vanished" in said
    assert "Traceback" not in said
    time.sleep(2)
    assert first.poll() is None, "the others give up only after a while, and it did not wait for that"
    first.communicate(timeout=90)
    assert first.returncode != 0
