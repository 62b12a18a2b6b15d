"""The launchers: the local one for real, the others' syntax."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from tests.tiny_runs import make_store, read_jsonl, saved_step, write_config_file

pytestmark = pytest.mark.usefixtures("quick_children")

LAUNCH = pathlib.Path(__file__).parent.parent / "experiments" / "launch"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("launch")
    make_store(root / "store", num_images=22)
    return write_config_file(root / "config.py", root / "store")


def launch(config_file, workdir, *options, num_processes=2, restarts=0, launcher=()):
    command = [sys.executable, str(LAUNCH / "local.py"), f"--num_processes={num_processes}", "--devices=2", *launcher]
    command += [f"--restarts={restarts}", "--", "train", f"--config={config_file}", f"--workdir={workdir}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_process(run, number):
    """Return a process of the launcher's once it runs capjax: until then it has the launcher's command line."""
    while True:
        for process in psutil.Process(run.pid).children():
            if process.cmdline()[-1:] == [f"--process_id={number}"]:
                return process
        assert run.poll() is None
        time.sleep(0.01)


def read_until(run, words):
    for line in run.stdout:
        if words in line:
            return
    raise AssertionError(f"it ended without saying {words!r}")


def test_four_processes_of_two_devices_finish(config_file, tmp_path):
    said, _ = (run := launch(config_file, tmp_path / "run", num_processes=4)).communicate(timeout=180)
    assert run.returncode == 0, said
    assert "8 cpu device(s) in 4 process(es)" in said
    assert saved_step(tmp_path / "run" / "checkpoints") == 12


def test_the_last_words_are_told_to_a_reader_who_is_slow(tmp_path):
    """A pipe holds 64 KiB; an error stands at the end of what is more."""
    (tmp_path / "capjax").mkdir()
    program = "import sys\nfor i in range(4000):\n    print(f'line {i} of many')\nsys.exit('an error')\n"
    (tmp_path / "capjax" / "__main__.py").write_text(program)
    (tmp_path / "capjax" / "__init__.py").touch()
    shutil.copy(LAUNCH.parent.parent / "capjax" / "errors.py", tmp_path / "capjax")
    command = [sys.executable, str(LAUNCH / "local.py"), "--num_processes=2", "--", "train"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, **output)
    time.sleep(3)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert said.count("an error") == 2 and said.count("line") == 8000


def test_a_stop_is_passed_on_and_the_same_command_goes_on(config_file, tmp_path):
    options = ["--config.train.num_steps=100000", "--config.train.log_every=1", "--config.eval.every=100000"]
    run = launch(config_file, tmp_path / "run", *options)
    read_until(run, "starting")
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and read_jsonl(log)):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 75, said
    assert "[0] capjax: error: interrupted after step" in said
    assert "[1] capjax: error: interrupted after step" in said


def test_a_stop_while_processes_are_started_is_not_lost(config_file, tmp_path):
    run = launch(config_file, tmp_path / "run", num_processes=4, launcher=["--patience=1"])
    wait_for_process(run, 0)
    run.send_signal(signal.SIGTERM)  # likely before the fourth is there
    said, _ = run.communicate(timeout=120)
    assert run.returncode in (signal.SIGTERM, 75), said


def test_a_job_with_a_killed_process_is_started_again_and_finishes(config_file, tmp_path):
    options = ["--config.train.num_steps=150", "--config.train.checkpoint_every=20", "--config.eval.every=1000"]
    run = launch(config_file, tmp_path / "run", *options, restarts=1)
    read_until(run, "starting")
    checkpoints = tmp_path / "run" / "checkpoints"
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        time.sleep(0.05)
    wait_for_process(run, 1).kill()
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said
    assert "starting again (1 of 1)" in said
    assert "resuming" in said
    assert saved_step(checkpoints) == 150


def test_processes_that_wait_for_one_that_never_came_are_killed(config_file, tmp_path):
    """They would wait for half an hour."""
    run = launch(config_file, tmp_path / "run", launcher=["--patience=1"])
    wait_for_process(run, 1).kill()
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 9, said


def test_an_error_is_not_tried_again(config_file, tmp_path):
    run = launch(config_file, tmp_path / "run", "--config.train.num_steps=0", restarts=3)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "expected train.num_steps of at least 1, got 0" in said
    assert "starting again" not in said


def test_an_error_of_one_process_is_not_tried_again_whatever_ends_the_other(config_file, tmp_path):
    """The one that writes the model fails; the other is lost without it, which alone would be tried again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("in the way")
    said, _ = (run := launch(config_file, tmp_path / "run", restarts=3)).communicate(timeout=180)
    assert run.returncode == 1, said
    assert "[0] capjax: error: expected to write a model to" in said
    assert "starting again" not in said
    (tmp_path / "run" / "model").unlink()
    said, _ = (run := launch(config_file, tmp_path / "run")).communicate(timeout=180)
    assert run.returncode == 0, said
    assert saved_step(tmp_path / "run" / "checkpoints") == 12


def test_a_second_signal_kills_processes_that_hang(config_file, tmp_path):
    run = launch(config_file, tmp_path / "run")
    for number in range(2):
        wait_for_process(run, number).suspend()
    for _ in range(2):
        run.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    said, _ = run.communicate(timeout=60)
    assert run.returncode in (signal.SIGTERM, signal.SIGKILL), said


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_shell_scripts_are_valid(script):
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)]).returncode == 0


def test_the_kubernetes_job_is_consistent():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    template, hosts = job["spec"]["template"]["spec"], job["spec"]["completions"]
    (container,) = template["containers"]
    assert job["spec"]["parallelism"] == hosts
    assert f"--num_processes={hosts}" in container["args"][0]
    assert template["subdomain"] == service["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in template["volumes"]}
    codes = [
        rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert codes == [[75]]
