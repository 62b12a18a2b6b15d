"""Several processes as one run: how they find each other, how they are stopped together, how they miss one."""

import argparse
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from capjax.errors import CapjaxError, LostProcess, causes, first_line
from capjax.host.waiting import waiting_for
from capjax.sharding import gather_json

# Whoever ends first waits for the others, which may have more work left, or scores to compute.
_WEEK = 7 * 24 * 3600
# A collective with a process that is gone may fail at once or wait; JAX ends those that wait, saying that a task died.
_HALF_A_MINUTE = 30
# How late the slowest host of many may come; one whose command is wrong never does.
_HALF_AN_HOUR = 1800
# What errors of collectives and of the coordination service speak of when a process is gone: those of JAX, and those
# that Orbax meets in its own exchanges, which are of no type that says so.
_LOST = ("Gloo", "NCCL", "oordination", "onnection", "heartbeat", "arrier", "UNAVAILABLE", "DEADLINE_", "ABORTED")
_LOST_ANYWHERE = ("Gloo", "NCCL", "oordination service")


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a job that several processes, on one host or many, can do together."""
    group = parser.add_argument_group("several processes", "start the same command in each")
    group.add_argument("--distributed", action="store_true", help="find the others as Slurm, TPU pods or GKE tell")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="find the others through process 0 instead")
    group.add_argument("--num_processes", type=int, help="with --coordinator: how many there are")
    group.add_argument("--process_id", type=int, help="with --coordinator: which one this is, from 0")


def join_processes(args: argparse.Namespace, stop_together: bool = False) -> None:
    """Join the other processes as the arguments say; before the first use of a device.

    Args:
        args: of `add_process_arguments`.
        stop_together: a SIGTERM to any process is for `stop_requests` to tell all; it has its usual effect otherwise.

    Raises:
        CapjaxError: if the arguments are incomplete or the others cannot be found.
    """
    given = (args.coordinator, args.num_processes, args.process_id)
    if given == (None, None, None) and not args.distributed:
        return
    if given != (None, None, None) and None in given:
        raise CapjaxError("expected --coordinator, --num_processes and --process_id together, got only some of them")
    if args.coordinator is not None:
        _check_numbers(args)
    jax.config.update("jax_enable_preemption_service", stop_together)
    timeouts = {"heartbeat_timeout_seconds": _HALF_A_MINUTE, "shutdown_timeout_seconds": _WEEK}
    timeouts["initialization_timeout"] = _HALF_AN_HOUR
    others = f"the other processes to start, and to reach {args.coordinator or 'process 0'}"
    try:
        with waiting_for(others), _ended_by_ctrl_c():
            jax.distributed.initialize(*given, **timeouts)
    except (RuntimeError, ValueError) as error:
        raise CapjaxError(f"expected to join the other processes, could not: {first_line(error)}") from None


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Have a Ctrl-C end the process in a block that waits outside of Python, where nobody would raise anything."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_numbers(args: argparse.Namespace) -> None:
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise CapjaxError(f"expected --coordinator=HOST:PORT, with a port from 1 to 65535, got {args.coordinator!r}")
    if args.num_processes < 1:
        raise CapjaxError(f"expected --num_processes of at least 1, got {args.num_processes}")
    if not 0 <= args.process_id < args.num_processes:
        raise CapjaxError(f"expected --process_id from 0 to {args.num_processes - 1}, got {args.process_id}")


def number_processes(args: argparse.Namespace) -> tuple[int, int]:
    """Tell which of how many processes this is, for a job whose processes share the work and nothing while they do it.

    With numbers given nobody is asked, and a process that died can be started again by itself. With `--distributed`
    all have to start, as it is JAX that numbers them. No process ends with another, or waits for it in the end.

    Returns:
        This process's number, from 0, and how many there are.

    Raises:
        CapjaxError: as `join_processes`.
    """
    if None in (args.coordinator, args.num_processes, args.process_id):
        join_processes(args)
        numbers = jax.process_index(), jax.process_count()
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # as soon as all are here
        return numbers
    _check_numbers(args)
    return args.process_id, args.num_processes


def on_first_process(work: Callable[[], object]) -> None:
    """Do on process 0 alone what none can go on without.

    Raises:
        CapjaxError: that of `work`; on the others, that process 0 could not go on.
    """
    error = None
    if jax.process_index() == 0:
        try:
            work()
        except CapjaxError as raised:
            error = raised
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.asarray(error is not None)):
        error = error or CapjaxError("process 0 could not go on; see what it says")
    if error:
        raise error


def check_same(values: Mapping[str, Any], what: str) -> None:
    """Refuse processes of one run that work with different things, on all of them alike.

    Args:
        values: JSON by name, of this process.
        what: they are.

    Raises:
        CapjaxError: naming one that differs.
    """
    first, *others = gather_json(values)
    for i, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise CapjaxError(
                    f"expected the same {what} on all processes of the run, {name} is another for process {i} than for "
                    "process 0; start the same command, on the same files, on all of them"
                )


def lost_process(error: BaseException | None) -> LostProcess | None:
    """Tell of an error, or what led to it, whether another process of the run is gone: what to say then, or None."""
    if not jax.distributed.is_initialized():
        return None
    for cause in causes(error):
        reason = first_line(cause, limit=1000)
        words = _LOST if isinstance(cause, jax.errors.JaxRuntimeError) else _LOST_ANYWHERE
        if any(word in reason for word in words):
            return LostProcess(
                f"expected all {jax.process_count()} processes of the run, one has ended or cannot be reached "
                f"({reason[:150]}); see what it says, then start the same command again on all of them: it goes on "
                "from the last checkpoint"
            )
    return None


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Give a function that tells, after every step, whether the run is to save that step and end.

    The first SIGTERM or Ctrl-C is noted, a second has its usual effect; so has the first where the run is on another
    thread than the main one, which alone can note them. Several processes, which must all save the same step, are told
    by JAX's preemption service: a signal to any of them makes them agree on a step that none has passed yet, and of a
    second one only Ctrl-C has its usual effect. The function must be called with every step; once it is true it stays
    so.
    """
    received = False
    if jax.distributed.is_initialized():
        passed = 0

        def agreed(step: int) -> bool:
            """Ask for every step: the one agreed on follows the last that any process asked for, at first step 0."""
            nonlocal passed, received
            received |= any([multihost_utils.reached_preemption_sync_point(i) for i in range(passed, step + 1)])
            passed = step + 1
            return received

        with _at_first_signal([signal.SIGINT], lambda: signal.raise_signal(signal.SIGTERM)):  # what the service heeds
            yield agreed
        return

    def note() -> None:
        nonlocal received
        received = True

    with _at_first_signal([signal.SIGINT, signal.SIGTERM], note):
        yield lambda step: received


@contextlib.contextmanager
def _at_first_signal(numbers: Sequence[int], act: Callable[[], None]) -> Iterator[None]:
    """Do something at the first of some signals, in place of its usual effect; on the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        act()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
