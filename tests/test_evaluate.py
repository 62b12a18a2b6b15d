"""Evaluation by two processes: every image captioned and scored once, the same as by one."""

import json
import os
import socket
import subprocess
import sys

from capjax.train import train
from tests.training_runs import make_store, tiny_config


def test_two_processes_evaluate_like_one(tmp_path):
    make_store(tmp_path / "store", num_images=22)
    train(tiny_config(tmp_path / "store"), tmp_path / "run")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(out, *processes):
        command = [sys.executable, "-m", "capjax", "evaluate", f"--model={tmp_path / 'run' / 'model'}", "--split=val"]
        command += [
            f"--out={tmp_path / out}",
            "--batch_size=8",
            "--metrics=CIDEr-D",
            "--bootstrap_samples=0",
            *processes,
        ]
        env = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_NUM_CPU_DEVICES": "2"}
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    together = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    runs = [start("two", *together, f"--process_id={i}") for i in range(2)] + [start("one")]
    for run in runs:
        _, stderr = run.communicate(timeout=300)
        assert run.returncode == 0, stderr[-2000:]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert sorted(row["image_id"] for row in two) == [1000 + i for i in range(22)]
    assert one == two
    scores = [(tmp_path / name / "per_image.jsonl").read_text() for name in ("one", "two")]
    assert scores[0] == scores[1]
