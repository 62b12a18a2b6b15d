"""What the report reads and writes: files that appear whole or not at all, and the training log."""

import json
import logging
import os
import pathlib
import tempfile
from typing import Any

from capjax.errors import CapjaxError

logger = logging.getLogger(__name__)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it, so that a failure leaves an earlier file intact.

    Missing parent folders are created.

    Raises:
      CapjaxError: the folder cannot be written, or the disk is full.
    """
    path = pathlib.Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; a report is meant to be shared
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)
        reason = error.strerror or error
        raise CapjaxError(f"cannot write {path}: {reason}; choose another place or make room") from error


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a training log: one JSON object a line, each with a `step`.

    A run that was killed leaves a torn line: it is dropped, with a warning if records follow it.

    Raises:
      CapjaxError: the file cannot be read.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise CapjaxError(f"expected a training log at {path}: {error.strerror or error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int | float):
            records.append(record)
        elif number < len(lines):
            logger.warning("%s, line %d is not a record with a step; left out", path, number)
    return records
