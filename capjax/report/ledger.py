"""The ledger: every measured number as one row of a JSONL file, from which the tables of results are made.

A row says what was measured (recipe, configuration, weights, data, decoding), what came out (scores with intervals,
speed), and how to measure it again (command, commit, hardware). Rows are appended and never changed.
"""

import datetime
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from capjax import __version__
from capjax.errors import CapjaxError

# What a configuration says of places and of chance is no part of what is measured; how captions were searched for is
# said by the row, but for their length, which validation and reinforcement go by.
_NOT_HASHED = (
    "seed",
    "recipe",
    "dataset.data_dir",
    "features.dir",
    "features.batch_size",
    "train.num_workers",
    "train.init_from",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "log.",
    "mesh.",
    "search.",
)
_HASHED = ("search.max_length",)


def asked_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was asked for: seeds, folders, what only changes speed left out, so that runs of it agree.

    Args:
        changes: of the defaults, see `capjax.config.changes`; so that a field that is new in another version, and left
            at its default, changes nothing.
    """
    asked = {name: value for name, value in changes.items() if name in _HASHED or not name.startswith(_NOT_HASHED)}
    if "encoder.weights" in asked:
        asked["encoder.weights"] = pathlib.PurePath(asked["encoder.weights"]).name
    return asked


def config_sha256(changes: Mapping[str, Any]) -> str:
    """Fingerprint what a run was asked for, see `asked_of`."""
    return hashlib.sha256(json.dumps(asked_of(changes), sort_keys=True).encode()).hexdigest()


def provenance() -> dict[str, Any]:
    """Return when and with what a row is measured: date, version, commit of a checkout, hardware."""
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "capjax": __version__,
        "commit": _commit(),
        "hardware": {
            "devices": f"{len(devices)} × {devices[0].device_kind}",
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "jax": jax.__version__,
    }


def append_row(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append a row.

    Raises:
        CapjaxError: if the ledger cannot be written.
    """
    _append(path, json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def check_ledger(path: str | os.PathLike[str]) -> None:
    """Make sure that rows can be appended, before what they tell of is measured.

    Raises:
        CapjaxError: if the ledger cannot be written.
    """
    _append(path, "")


def _append(path: str | os.PathLike[str], text: str) -> None:
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CapjaxError(f"expected to append to the ledger {path}, could not: {error.strerror or error}") from None


def read_ledger(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read all rows, the oldest first.

    Raises:
        CapjaxError: if a line is no row.
    """
    rows = []
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise CapjaxError(
                f"expected a JSON object in line {number} of {path}, got {line[:60]!r} ({error})"
            ) from None
    return rows


def _commit() -> str | None:
    """Return the commit of the checkout that runs, marked if files differ from it; None outside of one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
