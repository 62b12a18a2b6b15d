"""A disk that fills up while saving: one clear line, and what was saved before stays whole."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from capjax.model_directory import load_model_directory
from capjax.train import train
from tests.training_runs import make_store, saved_step, tiny_config, write_config_file

# No file may grow past 4,000 bytes: the system call fails as it does on a full disk. Pipes are not files.
RESUME = """
import resource, sys
from capjax.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store, and a run on it."""
    root = tmp_path_factory.mktemp("finished")
    make_store(root / "store")
    train(tiny_config(root / "store"), root / "run")
    return root


@pytest.mark.parametrize(("eval_every", "message"), [(100, "write a checkpoint"), (6, "write a model")])
def test_full_disk_while_saving(finished, tmp_path, eval_every, message):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = load_model_directory(tmp_path / "run" / "model").variables

    config_file = write_config_file(tmp_path / "config.py", tmp_path / "store")
    command = [sys.executable, "-c", RESUME, "train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    command += ["--config.train.num_steps=24", f"--config.eval.every={eval_every}"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    errors = [line for line in result.stderr.splitlines() if line.startswith("capjax: error: ")]
    assert result.returncode == 1
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in result.stderr

    jax.tree.map(np.testing.assert_array_equal, load_model_directory(tmp_path / "run" / "model").variables, before)
    assert saved_step(tmp_path / "run" / "checkpoints") == 12
