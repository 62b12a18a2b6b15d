"""How long a run takes to begin, and how much memory its processes take, by the number of captions.

python experiments/benchmarks/start_up.py --num_captions 100_000 10_000_000

Captions are drawn: words by Zipf's law, 5 captions an image, beside features of 8 numbers, as this is not about those.
Each dataset is trained on for a few steps, twice: the first run finds nothing that an earlier one has left. Memory is
what a process alone holds (USS), pages of mapped files that it shares with others not counted.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import psutil
from tqdm import tqdm

from capjax.data.feature_store import create_store
from capjax.types import CaptionRecord, Features

CAPTIONS_PER_IMAGE = 5
FEATURE_SIZE = 8
NUM_TYPES = 50_000
NUM_STEPS = 3
CONFIG = """
from capjax.config import default_config

def get_config():
    return default_config()
"""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_captions", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--num_workers", type=int, default=2, help="of the input pipeline")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps the datasets there; default: a temporary one")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to write")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        rows = []
        for num_captions in args.num_captions:
            store = folder / str(num_captions)
            if not (store / "made").exists():
                make_store(store, num_captions)
                (store / "made").touch()
            for turn in ("first", "second"):
                with tempfile.TemporaryDirectory() as workdir:
                    seconds, main_process, worker = start(store, pathlib.Path(workdir), args.num_workers)
                rows.append(f"| {num_captions:,} | {turn} | {seconds:.1f} | {main_process:,.0f} | {worker:,.0f} |")
                print(rows[-1], flush=True)
    lines = [
        "| captions | run | seconds to the first step | MB of the run's process | MB of a worker |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def make_store(folder: pathlib.Path, num_captions: int) -> None:
    """Draw captions, and write them as a feature store."""
    rng = np.random.default_rng(0)
    letters = np.asarray(list("abcdefghijklmnopqrstuvwxyz"))
    beginnings = ("".join(rng.choice(letters, 1 + rank.bit_length() // 2)) for rank in range(NUM_TYPES))
    types = np.asarray([f"{beginning}{rank}" for rank, beginning in enumerate(beginnings)])
    chances = 1 / np.arange(1, NUM_TYPES + 1)
    chances /= chances.sum()
    store = create_store(folder, {"dataset": "folder/many"}, FEATURE_SIZE)
    for split, num_images in {"train": num_captions // CAPTIONS_PER_IMAGE, "val": 500}.items():
        (folder / split).mkdir(exist_ok=True)
        with open(folder / split / "captions.jsonl", "w", encoding="utf-8") as file:
            for first in tqdm(range(0, num_images, 10_000), f"captions of {split}", disable=None):
                last = min(first + 10_000, num_images)
                lengths = rng.integers(6, 16, (last - first, CAPTIONS_PER_IMAGE))
                drawn = iter(types[rng.choice(NUM_TYPES, int(lengths.sum()), p=chances)].tolist())
                for i, of_captions in enumerate(lengths, first):
                    captions = [" ".join(next(drawn) for _ in range(length)) for length in of_captions]
                    record = CaptionRecord(i, f"{i:09d}.jpg", tuple(captions))
                    file.write(json.dumps(vars(record)) + "\n")
        for shard in tqdm(store.missing_shards(split), f"features of {split}", disable=None):
            store.write_shard(split, shard, Features(rng.standard_normal((len(shard), FEATURE_SIZE), np.float32)))


def start(store: pathlib.Path, workdir: pathlib.Path, num_workers: int) -> tuple[float, float, float]:
    """Train for a few steps.

    Returns:
        Seconds to the first step, and the most MB that the run's process and one of its workers held.
    """
    config = workdir / "config.py"
    config.write_text(CONFIG)
    fields = {
        "dataset.name": "folder/many",
        "features.dir": store,
        "encoder.weights": "",
        "train.num_steps": NUM_STEPS,
        "train.log_every": 1,
        "train.num_workers": num_workers,
        "eval.max_images": 200,
    }
    log_lines = workdir / "run" / "metrics.jsonl"
    command = [sys.executable, "-m", "capjax", "train", f"--config={config}", f"--workdir={workdir / 'run'}"]
    began, first_step, most = time.monotonic(), None, {"main": 0, "worker": 0}
    with open(workdir / "log", "wb") as log:
        run = psutil.Popen([*command, *(f"--config.{k}={v}" for k, v in fields.items())], stderr=log, stdout=log)
        while run.poll() is None:
            time.sleep(0.1)
            for process in (run, *run.children(recursive=True)):
                try:
                    if "resource_tracker" in " ".join(process.cmdline()):
                        continue
                    name = "main" if process == run else "worker"
                    most[name] = max(most[name], process.memory_full_info().uss)
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            if first_step is None and log_lines.exists() and log_lines.stat().st_size:
                first_step = time.monotonic() - began
    if run.returncode:
        sys.exit((workdir / "log").read_text())
    return first_step, most["main"] / 1e6, most["worker"] / 1e6


if __name__ == "__main__":
    main()
