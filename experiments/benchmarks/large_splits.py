"""What splits of COCO's size and stores of ten gigabytes take: an evaluation with its page, and opening features.

python experiments/benchmarks/large_splits.py --num_images 5_000 40_504 --num_shards 100 1_000

Pictures are drawn, a hundred different ones under as many names as there are images; captions are drawn from a thousand
words. `capjax data prepare` takes them in, a decoder trains for a moment on features that are noise, and `capjax
evaluate` draws a caption of each image, scores it and writes page, sheet and table. Memory is what its process alone
holds at most (USS). Stores have shards of 1,024 rows of 2,560 numbers, 10.5 MB each; each is opened, and read at random
places, by a process of its own, the second time with its files in the system's cache.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

import numpy as np
import psutil
from PIL import Image
from timing import run
from tqdm import tqdm

from capjax import data
from capjax.data.feature_store import ROWS_PER_SHARD, create_store, open_store
from capjax.types import CaptionRecord, Features

KEY = {"dataset": "folder/large"}
EVALUATED_SIZE = 2_048
OPENED_SIZE = 2_560
NUM_TRAINED, CAPTIONS_PER_IMAGE, NUM_WORDS = 2_000, 5, 1_000
NUM_READS = 20_000


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, nargs="+", default=[5_000, 40_504], help="of the evaluated split")
    parser.add_argument("--num_shards", type=int, nargs="+", default=[100, 1_000], help="of the stores to open")
    parser.add_argument("--folder", type=pathlib.Path, help="where to make temporary folders, of some 20 GB")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to write")
    args = parser.parse_args()

    lines = ["| images | seconds | MB of the process | report.html, MB | per_image.jsonl, MB |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: |"]
    for num_images in args.num_images:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            lines.append(evaluation(pathlib.Path(folder), num_images))
            print(lines[-1], flush=True)
    lines += ["", "| shards | GB | opened, s | again, s | rows/s at random | open files | maps | MB of the process |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for num_shards in args.num_shards:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            lines.append(opening(pathlib.Path(folder), num_shards))
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def draw_captions(rng: np.random.Generator) -> list[str]:
    """Draw the captions of an image."""
    words = np.char.add("w", rng.integers(0, NUM_WORDS, (CAPTIONS_PER_IMAGE, 10)).astype(str))
    return [" ".join(row) for row in words.tolist()]


def make_dataset(folder: pathlib.Path, num_images: int) -> None:
    """Draw pictures and captions, have them prepared, and make features of them."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    pictures = []
    for i in range(100):
        pictures.append(folder / f"{i}.jpg")
        noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(pictures[-1], quality=90)
    with open(folder / "captions.jsonl", "w") as file:
        for i in tqdm(range(NUM_TRAINED + num_images), "pictures", disable=None):
            name = f"{i:09d}.jpg"
            os.link(pictures[i % len(pictures)], folder / "photos" / name)
            split = "train" if i < NUM_TRAINED else "val"
            file.write(json.dumps({"file_name": name, "captions": draw_captions(rng), "split": split}) + "\n")
    command = [sys.executable, "-m", "capjax", "data", "prepare", "folder", "--name=large"]
    run([*command, f"--images={folder / 'photos'}", f"--captions={folder / 'captions.jsonl'}", f"--data_dir={folder}"])
    dataset = data.load("folder/large", folder)
    store = create_store(folder / "features", KEY, EVALUATED_SIZE)
    for split in dataset.splits:
        store.begin_split(split, dataset.records(split))
        for rows in tqdm(store.missing_shards(split), f"features of {split}", disable=None):
            store.write_shard(split, rows, Features(rng.standard_normal((len(rows), EVALUATED_SIZE), np.float32)))


def evaluation(folder: pathlib.Path, num_images: int) -> str:
    """Evaluate a split of so many images; return a row of the table."""
    make_dataset(folder, num_images)
    config = folder / "config.py"
    config.write_text("from capjax.config import default_config as get_config\n")
    fields = {
        "dataset.name": "folder/large",
        "dataset.data_dir": folder,
        "features.dir": folder / "features",
        "encoder.weights": "",
        "train.num_steps": 100,
        "eval.max_images": 200,
    }
    command = [sys.executable, "-m", "capjax"]
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    run([*command, "train", f"--config={config}", f"--workdir={folder / 'run'}", *overrides])
    out, most, start = folder / "evaluation", 0, time.monotonic()
    with open(folder / "log", "wb") as log:
        command += ["evaluate", f"--model={folder / 'run' / 'model'}", "--split=val", "--method=sample", f"--out={out}"]
        evaluating = psutil.Popen(command, stdout=log, stderr=log)
        while evaluating.poll() is None:
            most = max(most, _held(evaluating))
            time.sleep(0.1)
    if evaluating.returncode:
        sys.exit((folder / "log").read_text())
    sizes = [(out / name).stat().st_size / 1e6 for name in ("report.html", "per_image.jsonl")]
    cells = [f"{num_images:,}", f"{time.monotonic() - start:.0f}", f"{most / 1e6:,.0f}", *(f"{x:.1f}" for x in sizes)]
    return f"| {' | '.join(cells)} |"


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # it ended meanwhile
        return 0


def opening(folder: pathlib.Path, num_shards: int) -> str:
    """Open a store of so many shards; return a row of the table."""
    rng = np.random.default_rng(0)
    store = create_store(folder, KEY, OPENED_SIZE)
    captions = draw_captions(rng)
    store.begin_split("train", [CaptionRecord(i, f"{i}.jpg", captions) for i in range(num_shards * ROWS_PER_SHARD)])
    values = rng.standard_normal((ROWS_PER_SHARD, OPENED_SIZE), np.float32)
    for rows in tqdm(store.missing_shards("train"), "features", disable=None):
        store.write_shard("train", rows, Features(values))
    context = multiprocessing.get_context("spawn")
    times = []
    for _ in range(2):
        with concurrent.futures.ProcessPoolExecutor(1, context) as process:
            seconds, *rest = process.submit(open_and_read, folder).result()
            times.append(f"{seconds:.2f}")
    cells = [f"{num_shards:,}", f"{num_shards * values.nbytes / 1e9:.1f}", *times, *(f"{x:,.0f}" for x in rest)]
    return f"| {' | '.join(cells)} |"


def open_and_read(folder: pathlib.Path) -> tuple[float, float, int, int, float]:
    """Open a store as training does, and read rows.

    Returns:
        Seconds to the first row, rows a second after it, files that are open, parts of these files that are mapped into
        memory, and MB that the process holds.
    """
    start = time.perf_counter()
    store = open_store(folder, KEY)
    records, rows = store.records("train"), store.features("train")
    records[0], rows[0]
    seconds = time.perf_counter() - start
    places = np.random.default_rng(0).integers(0, len(rows), NUM_READS)
    start = time.perf_counter()
    for i in places:
        rows[i]
    reading = time.perf_counter() - start
    process = psutil.Process()
    maps = sum(pathlib.Path(part.path).is_relative_to(folder) for part in process.memory_maps(grouped=False))
    return seconds, NUM_READS / reading, process.num_fds(), maps, process.memory_full_info().uss / 1e6


if __name__ == "__main__":
    main()
