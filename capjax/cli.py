"""The program `capjax`: finds the job of a subcommand, hands it the arguments, prints errors as one line."""

import argparse
import importlib
import io
import os
import pathlib
import sys
from collections.abc import Sequence

from capjax import __version__
from capjax.errors import CapjaxError, Interrupted
from capjax.host_memory import keep_freed_memory

COMMANDS = {
    "demo": ("capjax.demo", "train on rendered scenes, caption unseen ones, write a report page"),
    "data": ("capjax.prepare_data", "prepare, validate or inspect a dataset"),
    "weights": ("capjax.convert_weights", "fetch, convert or verify pretrained encoder weights"),
    "features": ("capjax.extract_features", "compute or import encoder features once"),
    "train": ("capjax.train", "train a captioner; the same command resumes"),
    "evaluate": ("capjax.evaluate", "decode a split, score it, write the report page"),
    "caption": ("capjax.caption", "caption photos"),
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
        command goes on with, else 1. (2 comes from argparse: wrong usage.)
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are bytes, not always UTF-8
    # Compiled programs are kept between runs: most of a short run on a laptop is compilation.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "capjax" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    keep_freed_memory()
    status = _run(argv)
    # One of several processes that ends with an error does not wait for the others (an agreed stop, 75, is none).
    if status not in (0, Interrupted.exit_status) and (distributed := sys.modules.get("capjax.distributed")):
        distributed.leave(status)
    return status


def _run(argv: list[str]) -> int:
    """Run the subcommand; print its error as one line, and return the exit status."""
    try:
        args = _parse(argv)
        return args.run(args)
    except CapjaxError as error:
        print(f"capjax: error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"capjax: error: {error}", file=sys.stderr)
    except RuntimeError as error:  # XLA's own error is one of these, and JAX is not imported here
        distributed = sys.modules.get("capjax.distributed")
        if distributed and (lost := distributed.lost_process(error)):
            print(f"capjax: error: {lost}", file=sys.stderr)
            return 1
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        print(f"capjax: error: the device is out of memory ({reason}); {_SMALLER}", file=sys.stderr)
    except MemoryError as error:
        reason = str(error).strip().splitlines()[:1] or ["no more to be had"]
        print(f"capjax: error: out of memory ({reason[0]}); choose smaller inputs, or {_SMALLER}", file=sys.stderr)
    except KeyboardInterrupt:
        print("capjax: interrupted", file=sys.stderr)
        return 130
    return 1


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments, importing only the module of the subcommand that was asked for."""
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    argv = [a for a in argv if not a.startswith("--config.")]
    parser = argparse.ArgumentParser(prog="capjax", description="Image captioning in JAX.")
    parser.add_argument("--version", action="version", version=f"capjax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [name]:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run, main=main, overrides=overrides)
    args = parser.parse_args(argv)
    if overrides and not hasattr(args, "config"):
        parser.error(f"{args.command} takes no --config.{overrides[0]}")
    return args


if __name__ == "__main__":
    sys.exit(main())
