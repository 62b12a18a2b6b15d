"""What the program as a whole owes its user: buckets are refused in one line, and nothing is left behind."""

import pathlib
import signal
import subprocess
import sys

import pytest

from capjax.cli import _parse, main

GOLDEN = pathlib.Path(__file__).parent / "golden" / "model_0_1"


@pytest.mark.parametrize("bucket", ["gs://bucket/x", "S3://bucket/x"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "prepare", "scenes", "--data_dir=BUCKET"],
        ["data", "prepare", "flickr8k", "--source=BUCKET"],
        ["data", "prepare", "flickr8k", "--download_dir=BUCKET"],
        ["data", "prepare", "folder/x", "--images=BUCKET", "--captions=captions.csv"],
        ["data", "prepare", "folder/x", "--images=photos", "--captions=BUCKET"],
        ["data", "validate", "scenes", "--data_dir=BUCKET"],
        ["data", "inspect", "scenes", "--out=BUCKET.png"],
        ["weights", "fetch", "--out=BUCKET"],
        ["weights", "fetch", "--cache_dir=BUCKET"],
        ["weights", "convert", "x.h5", "--out=BUCKET"],
        ["weights", "convert", "BUCKET", "--out=x"],
        ["weights", "verify", "BUCKET"],
        ["features", "--config=scenes", "--import=BUCKET.npz"],
        ["features", "--config=scenes", "--config.features.dir=BUCKET"],
        ["features", "--config=scenes", "--config.dataset.data_dir=BUCKET"],
        ["train", "--config=scenes", "--workdir=BUCKET"],
        ["evaluate", "--model=BUCKET"],
        ["evaluate", "--model=x", "--out=BUCKET"],
        ["evaluate", "--model=x", "--images=BUCKET"],
        ["evaluate", "--model=x", "--data_dir=BUCKET"],
        ["evaluate", "--model=x", "--features_dir=BUCKET"],
        ["evaluate", "--model=x", "--compare=BUCKET"],
        ["caption", "--model=BUCKET", "x.jpg"],
        ["model", "show", "BUCKET"],
        ["model", "card", "x", "--evaluation=BUCKET"],
        ["export", "--model=BUCKET", "--out=x"],
        ["export", "--model=x", "--out=BUCKET"],
        ["demo", "--out=BUCKET"],
        ["score", "--references=r.json", "--results=a.json", "--out=BUCKET"],
        ["score", "--references=r.json", "--results=a.json", "--save_df=BUCKET"],
        ["score", "--references=r.json", "--results=a.json", "--df=BUCKET"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_buckets_are_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, bucket):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("BUCKET", bucket) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "mount the bucket" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "arguments"),
    [
        ("TFDS_DATA_DIR", ["data", "prepare", "scenes"]),
        ("TFDS_DATA_DIR", ["data", "inspect", "scenes"]),
        ("TFDS_DATA_DIR", ["features", "--config=scenes"]),
        ("CAPJAX_CACHE", ["weights", "fetch"]),
    ],
)
def test_buckets_of_the_environment_are_refused_in_one_line(tmp_path, monkeypatch, capsys, variable, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "gs://bucket/x")
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "mount the bucket" in line
    assert list(tmp_path.iterdir()) == []


INTERRUPTED = """
import os, signal, sys, time, types
from capjax import cli

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)

class Dropped:
    def __del__(self):
        interrupt()  # what is raised here goes nowhere

def run(args):
    if where == "dropped":
        Dropped()
    time.sleep(60)
    return 0

def load(name):
    if where == "import":
        interrupt()
        print("imported whole")
    return types.SimpleNamespace(add_arguments=lambda parser: None, run=run)

where = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.importlib.import_module = load
cli.program()
"""


@pytest.mark.parametrize(("where", "out"), [("dropped", ""), ("import", "imported whole\n")])
def test_an_interrupt_is_neither_lost_nor_ends_an_import_half_way(where, out):
    command = [sys.executable, "-c", INTERRUPTED, where, "score"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=pathlib.Path(__file__).parent.parent)
    assert (run.returncode, run.stdout, run.stderr) == (130, out, "capjax: interrupted\n")


# As a map of a file that was cut off, and as JAX where another process is gone.
ENDED = """
import ctypes, signal, sys, time
from capjax import cli

def ended_here():
    signal.raise_signal(signal.SIGBUS)

def ended_elsewhere():
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.abort, ctypes.c_void_p), None)
    time.sleep(60)

cli.main = {"here": ended_here, "elsewhere": ended_elsewhere}[sys.argv.pop(1)]
cli.program()
"""


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("here", -signal.SIGBUS, ["Fatal Python error: Bus error", "in ended_here"]),
        ("elsewhere", -signal.SIGABRT, ["Fatal Python error: Aborted"]),
    ],
)
def test_a_process_that_the_system_ends_says_where_that_thread_was_and_leaves_the_others_alone(where, status, said):
    command = [sys.executable, "-c", ENDED, where, "score"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=pathlib.Path(__file__).parent.parent)
    assert run.returncode == status
    assert all(words in run.stderr for words in said)
    assert "ended_elsewhere" not in run.stderr


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (("127.0.0.1", 2, 0), "expected --coordinator=HOST:PORT, with a port from 1 to 65535, got '127.0.0.1'"),
        (("nohost:abc", 2, 0), "got 'nohost:abc'"),
        (("127.0.0.1:-5", 2, 0), "got '127.0.0.1:-5'"),
        (("127.0.0.1:99999", 2, 0), "got '127.0.0.1:99999'"),
        (("127.0.0.1:1234", 0, 0), "expected --num_processes of at least 1, got 0"),
        (("127.0.0.1:1234", 2, 2), "expected --process_id from 0 to 1, got 2"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "features"])
def test_numbers_of_processes_that_cannot_be_are_one_line(capsys, command, numbers, message):
    options = {"evaluate": ["--model=x"], "features": ["--config=scenes"]}[command]
    options += [
        f"--{name}={n}" for name, n in zip(("coordinator", "num_processes", "process_id"), numbers, strict=True)
    ]
    assert main([command, *options]) == 1
    assert message in capsys.readouterr().err


def test_whoever_reads_the_first_line_alone_sees_no_error():
    photos = GOLDEN / "photos"
    command = [sys.executable, "-m", "capjax", "caption", f"--model={GOLDEN / 'model'}", *200 * [str(photos)]]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline()
    run.stdout.close()
    with run.stderr:
        said = run.stderr.read()
    assert run.wait(timeout=120) == 141
    assert "capjax: error" not in said and "Traceback" not in said


def test_demos_of_other_kinds_keep_out_of_each_others_folders(tmp_path, monkeypatch, capsys):
    """Their features and checkpoints do not fit each other, which the second would otherwise say in its second step."""
    monkeypatch.chdir(tmp_path)
    folders = set()
    for kinds in ([], ["--unseen_pairs"], ["--from_scratch"], ["--from_scratch", "--unseen_pairs"]):
        args = _parse(["demo", *kinds])
        args.main = lambda command: folders.add(command[-1]) or 3  # the first command alone, which does not end well
        assert args.run(args) == 3
    assert len(folders) == 4 and "--data_dir=demo/data" in folders


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_a_stream_that_the_shell_closed_is_not_needed(closed):
    shell = ["bash", "-c", f'exec "$0" -m capjax model show "$1" {closed}', sys.executable, str(GOLDEN / "model")]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert ("decoder/" in done.stdout) == (closed == "2>&-")


def test_who_has_no_home_directory_is_asked_for_one_where_it_is_needed(monkeypatch, capsys):
    def no_entry(number):
        raise KeyError(number)

    for name in ("HOME", "TFDS_DATA_DIR", "CAPJAX_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert main(["model", "show", str(GOLDEN / "model")]) == 0
    capsys.readouterr()
    for command in (["data", "validate", "scenes"], ["weights", "fetch"]):
        assert main(command) == 1
        assert "expected a home directory, found none; set HOME or" in capsys.readouterr().err


TRAIN = ["train", "--config=scenes", "--workdir=x"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "capjax: error: the following arguments are required: COMMAND; see capjax --help"),
        (["--bogus", *TRAIN], "capjax: error: unrecognized arguments: --bogus; see capjax --help"),
        (["train"], "capjax train: error: the following arguments are required: --config, --workdir; see capjax train"),
        ([*TRAIN, "--confg=3"], "capjax train: error: unrecognized arguments: --confg=3; see capjax train --help"),
        ([*TRAIN, "--a\nb"], r"capjax train: error: unrecognized arguments: --a\nb; see capjax train --help"),
        ([*TRAIN, "--config.seed", "3"], "capjax train: error: expected --config.seed=VALUE, with an equals sign; see"),
        (
            ["score", "--references=x", "--results=y", "--config.seed=1"],
            "score: error: unrecognized arguments: --config.se",
        ),
        (
            ["score", "--references=x", "--results=y", "--config.seed", "1"],
            "unrecognized arguments: --config.seed; see",
        ),
        (["data", "inspect", "scenes", "--num=x"], "data inspect: error: argument --num: invalid int value: 'x'; see"),
        (
            ["data", "prepare", "scenes", "--bogus", "3"],
            "capjax data prepare: error: unrecognized arguments: --bogus; see",
        ),
        (
            ["data", "inspect", "scenes", "--out=x.jpg"],
            "--out: expected the name of a PNG to write, such as sheet.png, got",
        ),
        (["caption", "a.jpg", "--model=m", "b.jpg"], "capjax caption: error: unrecognized arguments: b.jpg; see"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
