"""Where a run's numbers go: a JSONL file that any tool reads, and TensorBoard event files."""

import json
import math
import pathlib
from collections.abc import Mapping
from types import TracebackType

from tensorboardX import SummaryWriter

from capjax.disk import write_atomically


class MetricWriter:
    """Appends scalars to `<workdir>/metrics.jsonl` and to TensorBoard files in `<workdir>/tensorboard`.

    A resumed run drops the lines of steps it is going to repeat, so that every step stands once in the log.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, validated_step: int = 0, enabled: bool = True) -> None:
        """Open the log.

        Args:
            workdir: of the run.
            first_step: lines after this step are dropped; 0 starts anew.
            validated_step: validations after this step, which are going to be repeated as well, are dropped.
            enabled: false on all processes but the first; `write` then does nothing.
        """
        self._file = None
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        last = {True: min(validated_step, first_step), False: first_step}
        kept = [line for line in _whole_lines(path) if _is_kept(line, last)]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record the scalars of a step; not-a-number becomes null in the JSONL."""
        if self._file is None:
            return
        row = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, float(value), step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()


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
