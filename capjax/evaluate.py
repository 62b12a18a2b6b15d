"""Decode a split, score it, show it: `capjax evaluate --model=DIR --split=test`.

The output folder holds metrics.json (scores, intervals, health, every setting), per_image.jsonl, results.json in the COCO
results layout, and report.html.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from tqdm import tqdm

from capjax.data.input_pipeline import Rows, image_batches
from capjax.decoding.settings import DecoderSettings
from capjax.predict import Caption, Generator, LoadedModel
from capjax.sharding import check_divides, make_mesh, replicate
from capjax.types import CaptionRecord


@dataclass(frozen=True)
class Decoded:
    """The captions of a split, one per image, and how long they took.

    Attributes:
        records: the images with their references, in the split's order.
        captions: one for each.
        seconds: of decoding, compilation excluded.
    """

    records: Sequence[CaptionRecord]
    captions: Sequence[Caption]
    seconds: float


def decode_split(
    models: Sequence[LoadedModel],
    records: Sequence[CaptionRecord],
    rows: Rows,
    settings: DecoderSettings,
    batch_size: int,
) -> Decoded:
    """Caption every image of a split once, on all devices of all processes.

    Args:
        models: one, or an ensemble.
        records: of the split.
        rows: its images or features, in the same order.
        settings: of the search.
        batch_size: images over all devices.
    """
    mesh = make_mesh()
    check_divides(batch_size, "batch_size")
    generator = Generator([model.captioner for model in models], models[0].vocabulary, settings, mesh)
    variables = replicate([model.variables for model in models], mesh)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def batches() -> Iterator[Mapping[str, Any]]:
        return image_batches(records, rows, batch_size=batch_size, **processes)

    for _ in generator(variables, [next(batches())]):  # compiles, so that what follows can be timed
        pass
    start = time.perf_counter()
    captions = list(
        tqdm(generator(variables, batches()), total=len(records), desc="captioning", unit="image", disable=None)
    )
    seconds = time.perf_counter() - start
    if [caption.image_id for caption in captions] != [record.image_id for record in records]:
        raise AssertionError("every image is captioned exactly once, in order")
    return Decoded(records, captions, seconds)
