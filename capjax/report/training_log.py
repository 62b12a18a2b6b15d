"""The training log as the report reads it."""

import json
import logging
import os
import pathlib
from typing import Any

from capjax.errors import CapjaxError

logger = logging.getLogger(__name__)


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
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int | float):
            records.append(record)
        elif number < len(lines):
            logger.warning("%s, line %d is not a record with a step; left out", path, number)
    return records
