"""What the benchmarks share: programs timed in turn, and how times and ratios are told."""

import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

WARM_UP_SECONDS = 0.05
"""How long a program runs before it is timed: threads of PyTorch, OpenMP's, spin for milliseconds after its last."""


def warm_up(program: Callable[[], object]) -> None:
    """Call a program, again and again if it is a short one, until threads of the one before it have gone to sleep.

    They take a core in case there is more to do. Its matrices are in the caches then, and its own threads awake.
    """
    until = time.perf_counter() + WARM_UP_SECONDS
    program()
    while time.perf_counter() < until:
        program()


def interleave(
    programs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Time the programs in turn, each warmed up in its turn; return seconds by round, the first not counted."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds + 1):
        for name, program in programs.items():
            warm_up(program)
            if i:
                start = clock()
                program()
                times[name].append(clock() - start)
    return {name: np.asarray(values) for name, values in times.items()}


def run(command: list[str], **environment: str) -> tuple[float, str]:
    """Run a command to its end; return its seconds and what it said."""
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return seconds, done.stderr


def command_line() -> str:
    """Return how this script was called, but for where it writes and what it was told to note."""
    options = [option for option in sys.argv[1:] if not option.startswith(("--out=", "--note="))]
    return shlex.join(["python", f"experiments/benchmarks/{pathlib.Path(sys.argv[0]).name}", *options])


def told(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Format the median and the range."""
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}–{max(values):.{digits}f}]"


def versus(baseline: Sequence[float] | np.ndarray, seconds: Sequence[float] | np.ndarray) -> str:
    """Format how many times as fast as the baseline something is, round by round."""
    return told(np.asarray(baseline) / np.asarray(seconds), 2)
