"""The device that both sides of a benchmark compute on: the accelerator where there is one, else the CPU."""

import collections
import pathlib
import sys
import tempfile
from collections.abc import Callable

import jax
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CPU = jax.default_backend() == "cpu"
if ON_CPU != (DEVICE.type == "cpu"):
    sys.exit(f"JAX computes on {jax.default_backend()} and PyTorch on {DEVICE.type}: nothing to compare")
# What JAX does with float32 on a GPU unless told otherwise; PyTorch would do so in cuDNN alone.
torch.set_float32_matmul_precision("high")


def finish() -> None:
    """Wait until PyTorch's device has done what it was given."""
    if not ON_CPU:
        torch.cuda.synchronize()


def description() -> str:
    """Name the device and the libraries."""
    threads = f" with {torch.get_num_threads()} threads" if ON_CPU else ""
    return f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}{threads}"


def busiest(program: Callable[[], object], calls: int = 3, number: int = 8) -> list[tuple[str, float, float]]:
    """Profile calls of a JAX program that is compiled already.

    Args:
        program: waits for its result.
        calls: how many are profiled.
        number: of operations returned.

    Returns:
        Name, milliseconds a call and share of the profiled time of the operations that take most, a last row "of all"
        with their sum: on a GPU, what it lacks of 100 % is the device waiting to be told what to do; on a CPU, whose
        threads work side by side, it can be more.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                program()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        events = [
            [(e.start_ns, e.duration_ns, e.name) for e in line.events if any(key == "hlo_op" for key, _ in e.stats)]
            for plane in profile.planes
            for line in plane.lines
        ]
    own: collections.Counter[str] = collections.Counter()
    for of_line in events:
        for name, nanoseconds in own_times(of_line):
            own[name] += nanoseconds
    starts = [start for of_line in events for start, _, _ in of_line]
    ends = [start + duration for of_line in events for start, duration, _ in of_line]
    span = max(ends) - min(starts)
    rows = [(name, 1e-6 * spent / calls, spent / span) for name, spent in own.most_common(number)]
    return [*rows, ("of all", 1e-6 * own.total() / calls, own.total() / span)]


def own_times(events: list[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """Return each event's time without that of the events inside it: a loop's is not its body's.

    Args:
        events: (start, duration, name) of one thread or stream.
    """
    own: list[list] = []
    open_events: list[tuple[float, list]] = []  # ends and rows of `own` of what surrounds the present event
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            open_events.pop()
        if open_events:
            open_events[-1][1][1] -= duration
        own.append([name, duration])
        open_events.append((start + duration, own[-1]))
    return [(name, spent) for name, spent in own]
