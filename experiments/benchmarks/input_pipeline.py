"""How fast batches come: images decoded and resized, and cached features, by Grain setting.

    python experiments/benchmarks/input_pipeline.py --dataset=coco/2017 --out=experiments/results/input_pipeline.md

The dataset must be prepared; its photos are read from disk, decoded, cropped, resized to 299 pixels and batched by 32.
The baseline is a plain loop over the same files with Pillow alone.
"""

import argparse
import io
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import grain
import numpy as np
from PIL import Image

from capjax import data
from capjax.data import input_pipeline
from capjax.data.feature_store import create_store
from capjax.data.image_ops import Preprocessing
from capjax.data.input_pipeline import ImageRows, training_batches
from capjax.text.vocabulary import Vocabulary
from capjax.types import CaptionRecord, Features

BATCH_SIZE = 32


def plain_loop(encoded: list[bytes]) -> Iterator[np.ndarray]:
    """Decode, crop and resize as a script without a pipeline does."""
    while True:
        for content in encoded:
            image = Image.open(io.BytesIO(content)).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side)).resize((299, 299), Image.Resampling.BILINEAR)
            yield np.asarray(square)


def rate(next_batch: Callable[[], object], examples_per_call: int, seconds: float) -> float:
    """Count examples a second, after a warm-up."""
    for _ in range(2):
        next_batch()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next_batch()
        calls += 1
    return calls * examples_per_call / (time.perf_counter() - start)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="coco/2017")
    parser.add_argument("--data_dir")
    parser.add_argument("--seconds", type=float, default=8.0, help="per setting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/input_pipeline.md"))
    args = parser.parse_args()

    dataset = data.load(args.dataset, args.data_dir)
    records, images = dataset.records("train"), dataset.images("train")
    vocabulary = Vocabulary.build((c for r in records for c in r.captions), min_count=1)
    common = {"captions_per_image": 1, "max_tokens": 20, "seed": 0}
    encoded = [images[i] for i in range(len(images))]

    loop = plain_loop(encoded)
    programs: dict[str, tuple[Callable[[], object], int]] = {"images: plain Pillow loop": (lambda: next(loop), 1)}
    for threads, buffer in ((1, 2), (2, 8), (16, 500)):
        input_pipeline.READ_OPTIONS = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        batches = training_batches(
            records, ImageRows(images, Preprocessing(299)), vocabulary, batch_size=BATCH_SIZE, **common
        )
        name = f"images: capjax, {threads} threads, buffer {buffer}" + (" (default)" if threads == 2 else "")
        programs[name] = (lambda b=batches: next(b), BATCH_SIZE)

    with tempfile.TemporaryDirectory() as folder:
        store = create_store(folder, {"made": "for a benchmark"}, 2048)
        fake = [CaptionRecord(i, f"{i}.jpg", records[i % len(records)].captions) for i in range(4096)]
        store.begin_split("train", fake)
        for rows in store.missing_shards("train"):
            store.write_shard("train", rows, Features(np.zeros((len(rows), 2048), np.float32)))
        input_pipeline.READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        features = training_batches(fake, store.features("train"), vocabulary, batch_size=64, **common)
        programs["cached features, batch 64 (default)"] = (lambda: next(features), 64)

        rates: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, (program, amount) in programs.items():
                rates[name].append(rate(program, amount, args.seconds))
    lines = [
        "# Input pipeline",
        "",
        f"`python experiments/benchmarks/input_pipeline.py --dataset={args.dataset}`",
        "",
        f"{len(records)} photos of {args.dataset}, 299 pixels, batches of {BATCH_SIZE}; {args.rounds} interleaved "
        f"rounds of {args.seconds:g} s, median [min–max] examples a second, on two CPU cores. {args.note}",
        "",
        "| what | examples/s | × the loop |",
        "| --- | --- | --- |",
    ]
    base = np.asarray(rates["images: plain Pillow loop"])
    for name, values in rates.items():
        values = np.asarray(values)
        middle, low, high = np.median(values), values.min(), values.max()
        lines.append(f"| {name} | {middle:,.0f} [{low:,.0f}–{high:,.0f}] | {np.median(values / base):.2f} |")
    print("\n".join(lines))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
