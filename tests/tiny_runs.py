"""Tiny runs for tests: a feature store whose captions can be told from the features, a configuration, processes."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from capjax.checkpoint import read_newest
from capjax.config import default_config
from capjax.data.feature_store import create_store
from capjax.types import CaptionRecord, Features

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "star", "heart")
NUM_FEATURES = 8


def make_store(path: pathlib.Path, num_images: int = 24, num_val_images: int | None = None) -> None:
    """Write features that hold a colour and a shape, with two captions that name them, for train and val."""
    store = create_store(path, {"dataset": "coco/2014", "imported": "for tests"}, NUM_FEATURES)
    rng = np.random.default_rng(0)
    for split, first_id, size in (("train", 0, num_images), ("val", 1000, num_val_images or num_images)):
        kinds = [(rng.integers(4), rng.integers(4)) for _ in range(size)]
        records = [
            CaptionRecord(
                first_id + i, f"{i}.jpg", (f"a {COLOURS[c]} {SHAPES[s]}", f"one {SHAPES[s]} that is {COLOURS[c]}")
            )
            for i, (c, s) in enumerate(kinds)
        ]
        store.begin_split(split, records)
        pooled = np.stack([np.eye(NUM_FEATURES)[[c, 4 + s]].sum(axis=0) for c, s in kinds]).astype(np.float32)
        for rows in store.missing_shards(split):
            store.write_shard(split, rows, Features(pooled[rows.start : rows.stop]))


def tiny_config(store: pathlib.Path):
    """Return a configuration that trains on `make_store` in seconds."""
    config = default_config()
    config.encoder.weights = ""
    config.features.dir = str(store)
    config.vocabulary.min_count = 1
    config.decoder.embed_size = config.decoder.hidden_size = 12
    config.decoder.image_bottleneck_size = config.decoder.logit_bottleneck_size = 12
    config.decoder.dropout_rate = 0.1
    config.optimizer.learning_rate = 0.02
    config.train.batch_size = 16
    config.train.max_tokens = 8
    config.train.num_steps = 12
    config.train.log_every = 4
    config.train.checkpoint_every = 4
    config.eval.every = 6
    config.eval.batch_size = 16
    return config


def write_config_file(path: pathlib.Path, store: pathlib.Path) -> pathlib.Path:
    """Write a configuration file for subprocesses and the command line."""
    path.write_text(
        f"from tests.tiny_runs import tiny_config\n\n\ndef get_config():\n    return tiny_config({str(store)!r})\n"
    )
    return path


def saved_step(checkpoints: pathlib.Path) -> int:
    """Read the step that the newest checkpoint of a run really holds."""
    return int(read_newest(checkpoints)[1]["step"])


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Read a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


PROGRAM = ("-m", "capjax")


def start_capjax(
    *arguments: str, devices: int = 1, own_group: bool = False, program: Sequence[str] = PROGRAM
) -> subprocess.Popen:
    """Start the program with some simulated devices; in a process group of its own, signals reach its workers too."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0 if own_group else None,
    )


def start_processes(
    *arguments: str, devices: int = 1, num_processes: int = 2, special: Mapping[int, Mapping[str, Any]] | None = None
) -> list[subprocess.Popen]:
    """Start the processes of one run on loopback; `special` processes with other `options` or another `program`."""
    port = free_port()
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}"]
    runs = []
    for i in range(num_processes):
        of_this = dict((special or {}).get(i, {}))
        options = [*together, f"--process_id={i}", *of_this.pop("options", ())]
        runs.append(start_capjax(*arguments, *options, devices=devices, **of_this))
    return runs


def read_until(run: subprocess.Popen, words: str) -> str:
    """Read what a process says until a line has these words."""
    said = ""
    for line in run.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended without saying {words!r}: {said[-3000:]}")


def free_port() -> int:
    """Find a port that nobody listens on, below those that the system gives to whoever connects meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


def finish(*runs: subprocess.Popen, status: int = 0) -> list[str]:
    """Wait for processes and return what they said; all must end with `status`."""
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [status] * len(runs), "\n".join(text[-3000:] for text in said)
    return said


def assert_lost(run: subprocess.Popen) -> str:
    """Wait for a process that lost another, and return what it said: it says so within bounded time, or JAX for it."""
    said = run.communicate(timeout=90)[1]
    assert run.returncode in (69, -signal.SIGABRT), said[-3000:]
    assert "one has ended or cannot be reached" in said or "another task died" in said
    assert "Traceback" not in said
    return said
