"""Damage files by the thousand, in every format that capjax reads, and see that each is read or refused in one line.

    python -m experiments.fuzz --images=10000 --others=2000 --out=experiments/results/fuzzing.md
    python -m experiments.fuzz --only="captions, CSV" --first=123 --others=124

Each variant has a seed of its own: what damage `tests/damage.py` does to the small valid files of
`tests/image_mutations.py` and `tests/parsers.py`. A process of its own reads them, under a limit of memory and time;
where it dies or hangs, the next one goes on behind. What ends in anything but a result or a `CapjaxError` of one line
is kept in a folder, with what it ended in, and makes the exit status 1.
"""

import argparse
import contextlib
import logging
import multiprocessing
import pathlib
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from capjax.data.ingestion import examine
from capjax.errors import CapjaxError
from capjax.images import MIN_SIDE, decode_image, thumbnail
from tests.damage import damaged, damaged_bytes
from tests.image_mutations import encoded_images
from tests.parsers import PARSERS
from tests.rare_images import UNREADABLE

_HEAD = "| {0} | variants | accepted | refused | neither | slowest, ms | most memory, MB |\n| --- |" + 6 * " ---: |"


class Variant(NamedTuple):
    """A damaged file to be read: the parser or the encoded image by name, and which of its variants."""

    name: str
    number: int
    is_image: bool


class Outcome(NamedTuple):
    """How it went: "accepted", "refused", or what should not be; what was said; seconds; bytes."""

    kind: str
    said: str = ""
    seconds: float = 0.0
    memory: int = 0


@dataclass
class Row:
    """A line of the table."""

    outcomes: list[Outcome] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Format it."""
        kinds = [outcome.kind for outcome in self.outcomes]
        slowest = 1000 * max(outcome.seconds for outcome in self.outcomes)
        most = max(outcome.memory for outcome in self.outcomes) / 1e6
        right = [kinds.count("accepted"), kinds.count("refused")]
        counts = [len(kinds), *right, len(kinds) - sum(right)]
        return [*(f"{count:,}" for count in counts), f"{slowest:,.0f}", f"{most:,.0f}"]


class Reader:
    """Makes variants and reads them."""

    def __init__(self, folder: pathlib.Path, seed: int) -> None:
        """Write the valid files of all parsers below `folder`."""
        self._seed, self._images = seed, encoded_images() | UNREADABLE
        self._places: dict[str, pathlib.Path] = {}
        self._whole: dict[str, bytes] = {}
        for i, (name, parser) in enumerate(PARSERS.items()):
            self._places[name] = folder / f"{i:02d}"
            self._places[name].mkdir(parents=True)
            parser.write(self._places[name])
            self._whole[name] = (self._places[name] / parser.file).read_bytes()

    def make(self, variant: Variant) -> bytes:
        """Damage a file; the same variant of the same seed is the same."""
        rng = random.Random(f"{self._seed} {variant.name} {variant.number}")
        if variant.is_image:
            return damaged_bytes(self._images[variant.name], rng.choice(list(self._images.values())), rng)
        other = rng.choice(list(self._whole.values()))
        return damaged(PARSERS[variant.name].kind, self._whole[variant.name], other, rng)

    def read(self, variant: Variant, content: bytes) -> None:
        """Read a damaged file."""
        if variant.is_image:
            _read_image(content)
            return
        parser, place = PARSERS[variant.name], self._places[variant.name]
        (place / parser.file).write_bytes(content)
        try:
            parser.read(place)
        finally:
            (place / parser.file).write_bytes(self._whole[variant.name])


def _read_image(content: bytes) -> None:
    refused = None
    for read in (decode_image, thumbnail, examine):
        try:
            pixels = read(content)
        except CapjaxError as error:
            refused = error
            continue
        if isinstance(pixels, np.ndarray):
            assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and min(pixels.shape[:2]) >= MIN_SIDE
    if refused:
        raise refused


def outcome_of(reader: Reader, variant: Variant, content: bytes) -> Outcome:
    """Read a variant, and measure."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is that since here
    before, start, said = _memory("VmRSS"), time.perf_counter(), ""
    try:
        reader.read(variant, content)
        kind = "accepted"
    except CapjaxError as error:
        said = str(error)
        kind = "refused" if said.isprintable() and said else "a message that is not one line of text"
    except BaseException:  # what should not be, whatever it is
        kind, said = "another exception", traceback.format_exc()
    return Outcome(kind, said, time.perf_counter() - start, max(0, _memory("VmHWM") - before))


def _memory(name: str) -> int:
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return 1024 * int(line.split()[1])


def work(variants: Sequence[Variant], seed: int, room: int, current: pathlib.Path, pipe: Connection) -> None:
    """Read variants one after the other, in a process of its own; `current` holds what is being read."""
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(pathlib.Path(folder), seed)
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + room,) * 2)
        pipe.send(None)
        for variant in variants:
            content = reader.make(variant)
            current.write_bytes(content)
            pipe.send(outcome_of(reader, variant, content))


def outcomes(variants: Sequence[Variant], args: argparse.Namespace, current: pathlib.Path) -> Iterator[Outcome]:
    """Read variants, in a new process behind each that takes too long or too much of the old one."""
    spawn, done = multiprocessing.get_context("spawn"), 0
    while done < len(variants):
        ours, theirs = spawn.Pipe()
        arguments = (variants[done:], args.seed, int(1e6 * args.room), current, theirs)
        process = spawn.Process(target=work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        ours.recv()
        with contextlib.suppress(EOFError):
            while done < len(variants):
                if not ours.poll(args.seconds):
                    process.kill()
                    done += 1
                    yield Outcome(f"no end within {args.seconds:g} s")
                    break
                outcome = ours.recv()
                done += 1
                yield outcome
        process.join(timeout=args.seconds)
        if process.exitcode and process.exitcode != -9 and done < len(variants):
            done += 1
            yield Outcome(f"the end of the process, {process.exitcode}")


def plan(args: argparse.Namespace) -> list[Variant]:
    """List what is to be read: images in turn, of each parser as many as it is quick."""
    images = [*encoded_images(), *UNREADABLE]
    variants = [Variant(images[i % len(images)], i // len(images), True) for i in range(args.first, args.images)]
    for name, parser in PARSERS.items():
        number = max(args.others // parser.cost, min(args.others, 50))
        variants += [Variant(name, i, False) for i in range(args.first, number)]
    return [variant for variant in variants if args.only is None or variant.name.startswith(args.only)]


def main() -> int:
    """Run the harness; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="damaged images, over all formats")
    parser.add_argument("--others", type=int, default=2000, help="damaged files of each quick parser")
    parser.add_argument("--only", help="those whose name begins so")
    parser.add_argument("--first", type=int, default=0, help="the first variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="that a file may take")
    parser.add_argument("--room", type=float, default=4000, help="MB of addresses that the process may ask for")
    parser.add_argument("--memory", type=float, default=500, help="MB that a small file may take, but for images")
    parser.add_argument("--failures", type=pathlib.Path, default=pathlib.Path("fuzz_failures"), help="a folder")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the tables")
    args = parser.parse_args()
    variants, failures = plan(args), 0
    rows: dict[bool, dict[str, Row]] = {True: {}, False: {}}
    with tempfile.TemporaryDirectory() as folder:
        current = pathlib.Path(folder) / "current"
        progress = tqdm(outcomes(variants, args, current), total=len(variants), unit="file")
        for variant, outcome in zip(variants, progress, strict=True):
            # An image may have 200 megapixels, whatever its file takes.
            if outcome.memory > 1e6 * args.memory and not variant.is_image:
                outcome = outcome._replace(kind=f"{outcome.memory / 1e6:,.0f} MB of memory")
            name = variant.name.split(",")[0] if variant.is_image else variant.name
            rows[variant.is_image].setdefault(name, Row()).outcomes.append(outcome)
            if outcome.kind not in ("accepted", "refused"):
                failures += 1
                _keep(args.failures, variant, outcome, current)
    text = "\n\n".join(_table(head, rows[is_image]) for is_image, head in ((True, "format"), (False, "file")))
    print(text)
    if args.out:
        args.out.write_text(f"# Damaged files\n\n    python -m experiments.fuzz {' '.join(sys.argv[1:])}\n\n{text}\n")
    print(f"{len(variants):,} files, {failures} neither read nor refused in one line", file=sys.stderr)
    return 1 if failures else 0


def _keep(folder: pathlib.Path, variant: Variant, outcome: Outcome, current: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{variant.name.replace('/', ' ')} {variant.number}"
    path.with_name(path.name + ".txt").write_text(f"{outcome.kind}\n{outcome.said}", errors="backslashreplace")
    path.write_bytes(current.read_bytes())
    tqdm.write(f"{path}: {outcome.kind} {outcome.said.strip().splitlines()[-1:]}")


def _table(head: str, rows: dict[str, Row]) -> str:
    lines = [f"| {' | '.join([name, *row.cells()])} |" for name, row in sorted(rows.items())]
    total = Row([outcome for row in rows.values() for outcome in row.outcomes])
    return "\n".join([_HEAD.format(head), *lines, *([f"| all | {' | '.join(total.cells())} |"] if rows else [])])


if __name__ == "__main__":
    sys.exit(main())
