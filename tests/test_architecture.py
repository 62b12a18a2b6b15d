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

BASE = {"errors", "types", "host.disk", "host.waiting", "ops"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "host": {"errors"},
    "hub": BASE,
    "ops": set(),
    "images": BASE,
    "standalone": {"errors", "images"},
    "sharding": BASE,
    "distributed": BASE | {"sharding"},
    "text": BASE,
    "data": BASE | {"host.download", "images", "text"},
    "models": BASE,
    "pretrained": BASE | {"host.download", "models"},
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
    "evaluation",
    "serving",
    "training_run",
]
# Rooms of several parts; each may import what the room may, and the parts before it.
WITHIN = {
    "host": ["memory", "waiting", "disk", "download"],
    "ops": ["top_k", "affine"],
    "captioning": ["generator", "loaded_model", "photos", "splits"],
    "training_run": [
        "batch_scaling",
        "setup",
        "objectives",
        "validation",
        "validation_summaries",
        "resumption",
        "workdir",
    ],
}
# No job imports another; cli.py finds them by name.
JOBS = {
    *("caption", "convert_weights", "demo", "evaluate", "explain", "export_model", "extract_features", "inspect_model"),
    *("prepare_data", "score", "serve", "train", "cli"),
}


def place_of(parts):
    """The room that a module belongs to, with its part of a room that has some."""
    room, *within = (part.removesuffix(".py") for part in parts)
    return f"{room}.{within[0]}" if room in WITHIN and within and within[0] != "__init__" else room


def imported_places(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level + (node.module or "")  # relative imports would hide where they lead
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "capjax":
            parts = node.module.split(".")[1:]
            # A part of a room, or the whole of another, comes by a name: `from capjax.captioning import loaded_model`.
            names = [alias.name for alias in node.names] if not parts or parts[0] in WITHIN else [""]
            yield from (place_of([*parts, name]) for name in names)
        if isinstance(node, ast.Import):
            yield from (place_of(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("capjax."))


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_the_line(file):
    place = place_of(file.relative_to(PACKAGE).parts)
    room, _, part = place.partition(".")
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
    parts = WITHIN[room][: WITHIN[room].index(part) + 1] if part else []
    allowed = {*allowed, "__version__", *(f"{room}.{before}" for before in parts)} | ({room} - WITHIN.keys())
    unexpected = {name for name in imported_places(file) if not {name, name.partition(".")[0]} & allowed}
    assert not unexpected, f"{place} must not import {sorted(unexpected)}"


def test_relative_imports_are_seen(tmp_path):
    file = tmp_path / "room.py"
    file.write_text("from . import train\nfrom ..evaluate import run\nfrom capjax import data\nimport capjax.caption\n")
    assert list(imported_places(file)) == [".", "..evaluate", "data", "caption"]
    file.write_text(
        "from capjax.host import disk\nfrom capjax.host.hub import x\nfrom capjax.models import Captioner\n"
    )
    assert list(imported_places(file)) == ["host.disk", "host.hub", "models"]


def test_annotations_are_checked_in_tests():
    if jaxtyping.config.jaxtyping_disable:
        pytest.skip("the check of annotations was switched off with JAXTYPING_DISABLE")
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        preprocess(np.zeros((4, 4), np.uint8), Preprocessing())
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        preprocess(np.zeros((4, 4, 3), np.float32), Preprocessing())


def test_every_room_has_its_place():
    places = {place_of(file.relative_to(PACKAGE).parts) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    parts = {f"{room}.{part}" for room, parts in WITHIN.items() for part in parts}
    assert places == {*ALLOWED, *BETWEEN, *JOBS, "api", "__main__", *parts}


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
