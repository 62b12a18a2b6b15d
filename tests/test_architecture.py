"""The straight line: a package imports only what the map of the code allows; the main path needs no TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "capjax"

BASE = {"errors", "types"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "sharding": {"errors"},
    "disk": {"errors"},
    "images": {"errors"},
    "download": {"errors", "disk"},
    "text": {"errors", "disk"},
    "data": BASE | {"disk", "download", "images", "text"},
    "models": BASE,
    "pretrained": BASE | {"disk", "download", "models"},
    "losses": BASE,
    "decoding": BASE,
    "metrics": {"errors", "disk", "text"},
    "report": {"errors", "disk", "images"},
    "config": {"errors", "disk", "decoding"},
    "checkpoint": BASE | {"sharding", "text", "config"},
    "training": BASE | {"disk", "sharding", "models", "losses"},
}
LIBRARY = {
    "errors",
    "types",
    "sharding",
    "disk",
    "images",
    "download",
    "text",
    "data",
    "models",
    "pretrained",
    "losses",
}
LIBRARY |= {"decoding", "metrics", "report"}
# The jobs, each of which may import the library, the rooms between and the jobs before it.
JOBS = ["config", "checkpoint", "training", "assembly", "prepare_data", "convert_weights", "score", "extract_features"]
JOBS += ["predict", "train", "evaluate", "demo", "cli", "__main__"]


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "capjax":
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("capjax."))


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_the_line(file):
    room = room_of(file)
    if room == "__init__":
        return
    allowed = ALLOWED.get(room)
    if allowed is None:
        allowed = LIBRARY | set(JOBS[: JOBS.index(room)])
    unexpected = set(imported_rooms(file)) - allowed - {room, "__version__"}
    assert not unexpected, f"{room} must not import {sorted(unexpected)}"


def test_every_room_has_its_place():
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(ALLOWED) | set(JOBS)


def test_main_path_needs_neither_tensorflow_nor_torch():
    jobs = ["train", "evaluate", "predict", "extract_features", "prepare_data", "convert_weights", "score", "demo"]
    code = (
        "import sys, importlib\n"
        "sys.modules.update({name: None for name in ('torch', 'keras')})\n"  # importing these now fails
        f"for job in {jobs}: importlib.import_module('capjax.' + job)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
