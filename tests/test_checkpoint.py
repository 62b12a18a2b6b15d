"""Model directories stay whole whatever fails, and opening checkpoints leaves the logs of others alone."""

import concurrent.futures
import errno
import logging
import os
import pathlib
import re
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from capjax.checkpoint import Checkpoints
from capjax.errors import CapjaxError
from capjax.model_directory import ModelDirectory, load_model_directory, save_model
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from tests.tiny_runs import free_port


def model(word, value):
    variables = {"params": {"decoder": {"kernel": np.full(3, value, np.float32)}}}
    return ModelDirectory({}, None, Vocabulary([*SPECIAL_WORDS, word], "words"), variables, {"loss": value})


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), "could not (Stale file handle); it may be intact"),
        (PermissionError(errno.EACCES, "Permission denied"), "could not (Permission denied); it may be intact"),
        (MemoryError(), "could not (out of memory: MemoryError); it may be intact"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "expected an intact checkpoint"),
        (ValueError("no zarr"), "expected an intact checkpoint"),
    ],
)
def test_only_what_is_damaged_is_to_be_deleted(tmp_path, monkeypatch, error, told):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"weights": jnp.zeros(3)}, {"progress": 1}, wait=True)

        def fail(*args, **kwargs):
            try:
                raise error
            except Exception as cause:  # Orbax wraps some of them
                raise RuntimeError("could not restore") from cause

        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(CapjaxError, match=re.escape(told)) as caught:
            checkpoints.read_host()
        assert ("delete that folder" in str(caught.value)) == ("intact checkpoint" in told)


def assert_holds(directory, expected):
    found = load_model_directory(directory)
    assert found.vocabulary.words == expected.vocabulary.words and found.scores == expected.scores
    np.testing.assert_array_equal(
        found.variables["params"]["decoder"]["kernel"], expected.variables["params"]["decoder"]["kernel"]
    )


def test_a_model_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    first, second = model("dog", 1.0), model("cat", 2.0)
    save_model(tmp_path, first)
    replace = os.replace
    for failing in (1, 2, 3):
        calls = iter(range(1, 4))

        def full_disk(*paths, failing=failing, calls=calls):
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full_disk)
            with pytest.raises(CapjaxError, match="expected to write a model"):
                save_model(tmp_path, second)
        assert_holds(tmp_path, first)
    save_model(tmp_path, second)
    assert_holds(tmp_path, second)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["model.json", "vocabulary", "weights"]


def flip_the_last_bit(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        ("weights-*", flip_the_last_bit, "weights-.* is damaged"),
        ("vocabulary-*", lambda path: model("cat", 1.0).vocabulary.save(path), "vocabulary-.* differs"),
    ],
)
def test_parts_of_a_model_that_read_well_and_are_others_are_refused(tmp_path, pattern, damage, message):
    save_model(tmp_path, model("dog", 1.0))
    (path,) = tmp_path.glob(pattern)
    damage(path)
    with pytest.raises(CapjaxError, match=message):
        load_model_directory(tmp_path)


# Replaces a model again and again: by one of two others in turn, as a model that comes back is the hardest to notice.
REPLACE = """
import itertools, sys
from capjax.model_directory import save_model
from tests.test_checkpoint import recognisable
for i in itertools.count():
    save_model(sys.argv[1], recognisable(i % 2))
    if i == 0:
        print("there", flush=True)
"""

# One of two processes of a run: loads a model again and again, with pauses that differ, and says which it got.
LOAD = """
import sys, time
import jax
from capjax.model_directory import load_model_directory
directory, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
for i in range(20):
    time.sleep(0.05 * ((i + process) % 3))
    print("\\ngot", load_model_directory(directory).scores["number"], flush=True)
"""


def recognisable(number):
    """A model of which every part tells the number."""
    kernel = np.full((200, 1000), number, np.float32)
    vocabulary = Vocabulary([*SPECIAL_WORDS, f"word{number}"], "words")
    return ModelDirectory(
        {"number": number}, None, vocabulary, {"params": {"kernel": kernel}}, {"number": number}, {"number": number}
    )


def number_of(found):
    """Return the number of a model, all of whose parts must tell the same."""
    numbers = {found.config["number"], found.scores["number"], found.features["number"]}
    numbers |= {int(found.vocabulary.words[-1].removeprefix("word")), *np.unique(found.variables["params"]["kernel"])}
    (number,) = numbers
    return number


def start_script(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_model_that_is_replaced_all_the_while_is_always_read_whole(tmp_path):
    def load(_):
        numbers, end = [], time.monotonic() + 3
        while time.monotonic() < end or len(numbers) < 20:
            numbers.append(number_of(load_model_directory(tmp_path)))
        return numbers

    with start_script(REPLACE, tmp_path) as writer:
        try:
            assert writer.stdout.readline() == "there\n"
            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                loads = list(pool.map(load, range(3)))
            assert writer.poll() is None
        finally:
            writer.kill()
    assert set().union(*loads) == {0, 1}


def test_processes_of_one_run_load_the_same_model_while_it_is_replaced(tmp_path):
    save_model(tmp_path, recognisable(0))
    port = free_port()
    readers = [start_script(LOAD, tmp_path, port, process) for process in range(2)]
    number = 0
    while any(reader.poll() is None for reader in readers):
        number += 1
        save_model(tmp_path, recognisable(number))
        time.sleep(0.3)
    first, second = (re.findall(r"^got (\d+)$", reader.communicate()[0], re.MULTILINE) for reader in readers)
    assert len(first) == 20 and len(set(first)) > 1
    assert first == second


# A run makes Orbax quiet, and the program has a Ctrl-C come again that Python dropped.
QUIET = """
import signal, sys, time
from capjax import checkpoint, cli

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def main():
    checkpoint.quiet_orbax()
    checkpoint.quiet_orbax()
    Dropped()
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main = main
cli.program()
"""


def test_a_run_hears_the_interrupts_that_python_drops():
    root = pathlib.Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=50, cwd=root)
    assert run.returncode not in (0, None) and "KeyboardInterrupt" in run.stderr, run.stderr


def test_opening_checkpoints_leaves_the_logs_of_others_alone(tmp_path):
    logger = logging.getLogger("absl")
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        with Checkpoints(tmp_path, keep=1):
            assert logger.level == logging.INFO
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
