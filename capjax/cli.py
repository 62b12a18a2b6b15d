"""The program `capjax`: finds the job of a subcommand, hands it the arguments, prints errors as one line."""

import argparse
import contextlib
import faulthandler
import importlib
import io
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from capjax import __version__
from capjax.errors import CapjaxError, Interrupted, first_line, printable
from capjax.host.disk import remove_temporary_folders
from capjax.host.memory import keep_freed_memory

COMMANDS = {
    "demo": ("capjax.demo", "train on rendered scenes, caption unseen ones, write a report page"),
    "data": ("capjax.prepare_data", "prepare, validate or inspect a dataset"),
    "weights": ("capjax.convert_weights", "fetch, convert or verify pretrained encoder weights"),
    "features": ("capjax.extract_features", "compute or import encoder features once"),
    "train": ("capjax.train", "train a captioner; the same command resumes"),
    "evaluate": ("capjax.evaluate", "decode a split, score it, write the report page"),
    "caption": ("capjax.caption", "caption photos"),
    "explain": ("capjax.explain", "show word by word how captions of photos came about"),
    "serve": ("capjax.serve", "serve a captioner: a page for people, a JSON API for programs"),
    "model": ("capjax.inspect_model", "show what a model directory holds, write its model card"),
    "export": ("capjax.export_model", "pack a captioner into one file that runs without capjax"),
    "score": ("capjax.score", "score anybody's COCO results file"),
}


_SMALLER = (
    "make batches smaller: --config.train.batch_size (or more --config.train.accumulate_steps), "
    "--config.eval.batch_size, --config.features.batch_size, or --batch_size of the commands that decode"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments, those of the process by default.

    Returns:
        The exit status: 0, or that of an error, which was printed as one line: 75 where a run was stopped that the same
        command goes on with, 69 where another process is gone, else 1. 2 comes from argparse, for wrong usage; 141
        says that nobody reads what is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are bytes, not always UTF-8
    # Compiled programs are kept between runs: most of a short run on a laptop is compilation.
    if (home := os.path.expanduser("~")) != "~":  # who has none keeps none
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(home) / ".cache" / "capjax" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    keep_freed_memory()
    try:
        args = _parse(argv)
        return args.run(args)
    except KeyboardInterrupt:
        print("capjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read what is printed has seen enough: `capjax caption … | head`
        return 141
    except Exception as error:
        distributed = sys.modules.get("capjax.distributed")  # which imports JAX
        error = (distributed and distributed.lost_process(error)) or error
        message = _message(error)
        if message is None:
            raise
        print(f"capjax: error: {message}", file=sys.stderr)
        return error.exit_status if isinstance(error, CapjaxError) else 1


def program() -> None:
    """Run the subcommand that the process was started with, and end the process.

    After an error it ends at once: it must wait neither for other processes, which may wait for it, nor for threads of
    its own that a disk or one of those processes does not answer.
    """
    sys.unraisablehook = _interrupt_again
    if sys.stderr is not None:  # a shell can close it
        # What the system ends at once, as for a map of a file cut off, says where it was. Other threads run on while
        # their stacks are read, which can crash where JAX ends the process because another is gone.
        faulthandler.enable(all_threads=False)
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if status in (0, Interrupted.exit_status):
        sys.exit(status)
    remove_temporary_folders()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            if stream is not None:  # a shell can close them
                stream.flush()
    os._exit(status)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Have a Ctrl-C come again that came where Python drops errors, as in a callback of its garbage collector."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold a Ctrl-C back until the end of the block: compiled modules that it stops half-way end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        signal.raise_signal(signal.SIGINT)


def _message(error: Exception) -> str | None:
    """Say an error that the user can put right in one line; None for others, which are bugs."""
    if isinstance(error, CapjaxError | OSError):
        return str(error)
    reason = first_line(error)
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):  # XLA's own error; JAX is not imported
        return f"the device is out of memory ({reason}); {_SMALLER}"
    if isinstance(error, MemoryError):
        return f"out of memory ({reason}); choose smaller inputs, or {_SMALLER}"
    return None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, of its own command, where argparse would put all options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)}; see {self.prog} --help\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse what this very command does not know, which argparse leaves to the program."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [argument for argument in unknown if argument.startswith("-")]
            self.error(f"unrecognized arguments: {' '.join(options or unknown)}")
        return namespace, []


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments, importing only the module of the subcommand that was asked for."""
    given, fields = argv, [a for a in argv if a.startswith("--config.")]
    argv = [a for a in argv if a not in fields]
    chosen = next((a for a in argv if a in COMMANDS), None)
    parser = _Parser(prog="capjax", description="Image captioning in JAX.")
    parser.add_argument("--version", action="version", version=f"capjax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            with _interrupts_wait():
                module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(
                run=module.run, main=main, argv=given, overrides=[f.removeprefix("--config.") for f in fields]
            )
            if fields and "--config" not in command.format_usage():
                command.error(f"unrecognized arguments: {fields[0]}")
            if bare := [field for field in fields if "=" not in field]:
                command.error(f"expected {bare[0]}=VALUE, with an equals sign")
    return parser.parse_args(argv)


if __name__ == "__main__":
    program()
