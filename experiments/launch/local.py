"""Start a capjax job as several processes on this machine, and start it again when it was stopped or a process died.

    python experiments/launch/local.py --num_processes=2 -- train --config=scenes --workdir=runs/scenes
    python experiments/launch/local.py --num_processes=2 --devices=4 --restarts=5 -- train …   # 8 simulated devices

What the processes say is printed with their number in front. A SIGTERM or Ctrl-C is passed on: they save the same step
and the launcher ends with their status, 75; a second one kills them. Without one, a job that ends with 75 (a process
was told to stop), in which a process died of a signal or one that it needs was lost, 69, is started again, up to
RESTARTS times. An error of its own in any process, whatever became of the others, ends it with the status of that.
"""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from capjax.errors import Interrupted, LostProcess

# What the same command mends; so it does, as a rule, what ended a process by a signal.
MENDED = (Interrupted.exit_status, LostProcess.exit_status)


def main() -> int:
    """Run the job to its end; return its status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--devices", type=int, help="devices to simulate in each process, on CPUs")
    parser.add_argument("--restarts", type=int, default=0, help="how often the job may be started again")
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long the others may take to end when one has (default: 60; JAX ends those that wait after 30)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="of capjax, with its options")
    args = parser.parse_args()
    if args.num_processes < 1:
        parser.error(f"expected --num_processes of at least 1, got {args.num_processes}")
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("expected a command of capjax behind --, such as: -- train --config=scenes --workdir=runs/scenes")

    signals: list[int] = []  # received so far; `wait` acts on them, whenever they came
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    for attempt in range(args.restarts + 1):
        processes, threads = start(command, args.num_processes, args.devices)
        statuses = wait(processes, signals, args.patience)
        for thread in threads:
            thread.join(args.patience)
        own_error = next((status for status in statuses if status > 0 and status not in MENDED), 0)
        if signals or own_error or not any(statuses) or attempt == args.restarts:
            break
        print(f"launch: ended with {statuses}, starting again ({attempt + 1} of {args.restarts})", flush=True)
    return own_error or next((abs(status) for status in statuses if status), 0)


def start(
    command: list[str], num_processes: int, devices: int | None
) -> tuple[list[subprocess.Popen], list[threading.Thread]]:
    """Start all processes, out of reach of the terminal's Ctrl-C, which the launcher passes on once.

    Returns:
        The processes, and threads that end when all that these said is printed.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if devices:
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    together = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={num_processes}"]
    processes, threads = [], []
    for i in range(num_processes):
        process = subprocess.Popen(
            [sys.executable, "-m", "capjax", *command, *together, f"--process_id={i}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        threads.append(threading.Thread(target=show, args=(process, i), daemon=True))
        threads[-1].start()
        processes.append(process)
    return processes, threads


def show(process: subprocess.Popen, number: int) -> None:
    """Print what a process says."""
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def wait(processes: list[subprocess.Popen], signals: list[int], patience: float) -> list[int]:
    """Wait for all; when one has ended badly, kill those that do not end in time. Return their statuses."""
    deadline = math.inf
    told_to_stop = False
    while None in (statuses := [process.poll() for process in processes]):
        if any(statuses):
            deadline = min(deadline, time.monotonic() + patience)
        if signals and not told_to_stop:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            told_to_stop = True
        if len(signals) > 1 or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return statuses


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
