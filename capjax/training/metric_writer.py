"""Where a run's numbers go: a JSONL file that any tool reads, and TensorBoard event files."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from capjax.host.disk import clear_disk_errors, write_atomically
from capjax.training.tensorboard import Event, EventsWriter, SessionLog, Summary


class MetricWriter:
    """Appends scalars to `<workdir>/metrics.jsonl` and to TensorBoard files in `<workdir>/tensorboard`.

    A resumed run drops the lines of steps it is going to repeat, so that every step stands once in the log.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, validated_step: int = 0, enabled: bool = True) -> None:
        """Open the log.

        Args:
            workdir: of the run.
            first_step: lines after this step are dropped; all, at 0, as the run starts anew.
            validated_step: validations after this step, which are going to be repeated as well, are dropped.
            enabled: false on all processes but the first; `write` and `show` then do nothing.

        Raises:
            CapjaxError: if it cannot be written; so do `write` and `show`.
        """
        self._file = None
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        last = {True: min(validated_step, first_step), False: first_step}
        kept = [line for line in _whole_lines(path) if first_step and _is_kept(line, last)]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self._workdir = workdir
        with clear_disk_errors(workdir):
            self._file = path.open("a")
            (workdir / "tensorboard").mkdir(exist_ok=True)
            goes_on = any((workdir / "tensorboard").iterdir())
            # Not a SummaryWriter, whose thread dies of a full disk, after which its queue takes no more and all waits.
            self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
            if goes_on:
                self._write_event(first_step and first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record the scalars of a step; not-a-number becomes null in the JSONL."""
        if self._file is None:
            return
        row = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        with clear_disk_errors(self._workdir):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._write_event(step, summary=Summary(value=values))

    def show(self, step: int, summaries: Sequence[Summary.Value]) -> None:
        """Give TensorBoard what is no scalar, see `capjax.training.summaries`."""
        if self._file is None or not summaries:
            return
        with clear_disk_errors(self._workdir):
            self._write_event(step, summary=Summary(value=summaries))

    def _write_event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
        self._events.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            for file in (self._file, self._events):
                with contextlib.suppress(OSError):  # `write` has told what could not be written
                    file.close()


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Read a log, without a last line that was torn by a kill."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.split("\n")[:-1]


def _is_kept(line: str, last: Mapping[bool, int]) -> bool:
    """Tell whether a line is of a step that is not repeated; one that is no record, after a crash, is dropped."""
    try:
        row = json.loads(line)
        return row["step"] <= last["val/loss" in row]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
