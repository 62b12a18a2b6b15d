"""The straight line: a package imports only what the map of the code allows; the main path needs no TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest

from capjax.images import Preprocessing, preprocess

PACKAGE = pathlib.Path(__file__).parent.parent / "capjax"

BASE = {"errors", "types", "host", "ops"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "host": {"errors"},
    "ops": set(),
    "images": BASE,
    "standalone": {"errors", "images"},
    "sharding": BASE,
    "distributed": BASE,
    "text": BASE,
    "data": BASE | {"images", "text"},
    "models": BASE,
    "pretrained": BASE | {"models"},
    "losses": BASE,
    "decoding": BASE,
    "metrics": BASE | {"text"},
    "report": BASE | {"images"},
    "config": BASE | {"decoding", "models"},
    "checkpoint": BASE,
    "model_directory": BASE | {"sharding", "text", "config"},
    "training": BASE | {"sharding", "models", "losses", "decoding", "metrics"},
}
# The rooms between the library and the jobs; each may import the library and those before it.
BETWEEN = [
    "assembly",
    "split_rows",
    "captioning",
    "attribution",
    "serving",
    "training_run",
]
# No job imports another; cli.py finds them by name.
JOBS = {
    *("caption", "convert_weights", "demo", "evaluate", "explain", "export_model", "extract_features", "inspect_model"),
    *("prepare_data", "score", "serve", "train", "cli"),
}


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level + (node.module or "")  # relative imports would hide where they lead
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
    if room in ALLOWED:
        allowed = ALLOWED[room]
    elif room == "api":  # the jobs as functions
        allowed = {*ALLOWED, *BETWEEN, *JOBS}
    elif room in BETWEEN:
        allowed = {*ALLOWED, *BETWEEN[: BETWEEN.index(room)]}
    else:
        allowed = {*ALLOWED, *BETWEEN} if room in JOBS else {"cli"}
    unexpected = set(imported_rooms(file)) - allowed - {room, "__version__"}
    assert not unexpected, f"{room} must not import {sorted(unexpected)}"


def test_relative_imports_are_seen(tmp_path):
    file = tmp_path / "room.py"
    file.write_text("from . import train\nfrom ..evaluate import run\nfrom capjax import data\nimport capjax.caption\n")
    assert list(imported_rooms(file)) == [".", "..evaluate", "data", "caption"]


def test_annotations_are_checked_in_tests():
    if jaxtyping.config.jaxtyping_disable:
        pytest.skip("the check of annotations was switched off with JAXTYPING_DISABLE")
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        preprocess(np.zeros((4, 4), np.uint8), Preprocessing())
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        preprocess(np.zeros((4, 4, 3), np.float32), Preprocessing())


def test_every_room_has_its_place():
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == {*ALLOWED, *BETWEEN, *JOBS, "api", "__main__"}


def test_main_path_needs_neither_tensorflow_nor_torch():
    jobs = ["train", "evaluate", "caption", "extract_features", "prepare_data", "convert_weights", "score", "demo"]
    jobs += ["inspect_model", "export_model", "explain", "serve", "api"]
    code = (
        "import sys, importlib\n"
        f"for job in {jobs}: importlib.import_module('capjax.' + job)\n"
        "assert not {'tensorflow', 'torch', 'keras'} & set(sys.modules)\n"  # nor does a dependency, which takes seconds
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
