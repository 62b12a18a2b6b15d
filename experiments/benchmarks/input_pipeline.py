"""How fast batches come: images decoded and resized, and cached features, by Grain setting.

    python experiments/benchmarks/input_pipeline.py --dataset=coco/2017 --out=experiments/results/input_pipeline.md

The dataset must be prepared; its photos are read from disk, decoded, cropped, resized to 299 pixels and batched by 32.
The baseline is a plain loop over the same files with Pillow alone.
"""

import argparse
import gc
import io
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import grain
import numpy as np
from PIL import Image

from capjax import data
from capjax.data import input_pipeline
from capjax.data.feature_store import create_store
from capjax.data.input_pipeline import ImageRows, training_batches
from capjax.data.tokenized_captions import tokenized_captions
from capjax.images import Preprocessing
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


def rate(start_iterator: Callable[[], Iterator[object]], examples_per_item: int, num_items: int) -> float:
    """Count examples a second of a fresh iterator, alone: no other pipeline may fill its buffer meanwhile."""
    iterator = start_iterator()
    next(iterator)
    start = time.perf_counter()
    for _ in range(num_items):
        next(iterator)
    seconds = time.perf_counter() - start
    del iterator
    gc.collect()
    return num_items * examples_per_item / seconds


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="coco/2017")
    parser.add_argument("--data_dir")
    parser.add_argument("--batches", type=int, default=40, help="timed per setting and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/input_pipeline.md"))
    args = parser.parse_args()

    dataset = data.load(args.dataset, args.data_dir)
    records, images = dataset.records("train"), dataset.images("train")
    captions = tokenized_captions(records, "words")
    vocabulary = Vocabulary.from_counts(captions.counts, min_count=1)
    captions = captions.encode(vocabulary)
    common = {"captions_per_image": 1, "max_tokens": 20, "seed": 0}
    encoded = [images[i] for i in range(len(images))]

    def images_iterator(threads: int, buffer: int) -> Iterator[object]:
        input_pipeline.READ_OPTIONS = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        rows = ImageRows(images, Preprocessing(299))
        return training_batches(captions, rows, batch_size=BATCH_SIZE, **common)

    # Far more items than any buffer holds, so that what was prefetched before the clock started does not count.
    programs: dict[str, tuple[Callable[[], Iterator[object]], int, int]] = {
        "images: plain Pillow loop": (lambda: plain_loop(encoded), 1, 32 * args.batches),
        "images: capjax, 1 thread, buffer 1": (partial(images_iterator, 1, 1), BATCH_SIZE, args.batches),
        "images: capjax, 2 threads, buffer 8 (default)": (partial(images_iterator, 2, 8), BATCH_SIZE, args.batches),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(folder, {"made": "for a benchmark"}, 2048)
        fake = [CaptionRecord(i, f"{i}.jpg", records[i % len(records)].captions) for i in range(4096)]
        store.begin_split("train", fake)
        for shard in store.missing_shards("train"):
            store.write_shard("train", shard, Features(np.zeros((len(shard), 2048), np.float32)))

        of_store = tokenized_captions(store.records("train"), "words").encode(vocabulary)

        def features_iterator() -> Iterator[object]:
            input_pipeline.READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
            return training_batches(of_store, store.features("train"), batch_size=64, **common)

        programs["cached features, batch 64 (default)"] = (features_iterator, 64, 4 * args.batches)
        rates: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, program in programs.items():
                rates[name].append(rate(*program))
    lines = [
        "# Input pipeline",
        "",
        f"`python experiments/benchmarks/input_pipeline.py --dataset={args.dataset} --batches={args.batches}`",
        "",
        f"{len(records)} photos of {args.dataset}, 299 pixels, batches of {BATCH_SIZE}; {args.rounds} interleaved "
        f"rounds of {args.batches} batches, median [min–max], on two CPU cores. {args.note}",
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
