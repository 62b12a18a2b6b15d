"""Batches from examples: Grain pipelines for training, for validation loss and for decoding.

A batch is a dict of NumPy arrays with static shapes, this process's part of the global batch:

| key        | shape                  | meaning                                                              |
| ---------- | ---------------------- | -------------------------------------------------------------------- |
| `image`    | uint8 [N, H, W, 3]     | preprocessed images, or instead                                      |
| `features` | `Features` [N, …]      | their cached features                                                |
| `tokens`   | int32 [B, L+1]         | captions [START, w1, …, END, PAD, …]; N divides B                    |
| `mask`     | bool [B, L]            | true where `tokens[:, 1:]` is a word or END                          |
| `image_id` | int64 [N]              | of the dataset                                                       |
| `valid`    | bool [N]               | false for the rows that only fill up the last batch                  |

Training batch t depends on the seed and t alone: whoever has seen t batches goes on with batch t, on any number of
processes. Each holds adjoining rows, in the order of the processes, so that row r of a global batch is the same caption
for any number of them.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from capjax.errors import CapjaxError
from capjax.images import Preprocessing, decode_image, preprocess
from capjax.text.vocabulary import Vocabulary
from capjax.types import SPECIAL_IDS, CaptionRecord, Features

# Grain's default of 16 threads and 500 elements costs 100 MB and is slower on small machines.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

# Random crops come out of an image this much larger, as in im2txt (346 pixels for a crop of 299).
CROP_MARGIN = 346 / 299


@runtime_checkable
class Rows(Protocol):
    """The visual input of every record: `FeatureRows`, or `ImageRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


@dataclass(frozen=True)
class ImageRows:
    """Random access to preprocessed images: `rows[i]` is uint8 [S, S, 3].

    Attributes:
        encoded: the dataset's encoded images.
        preprocessing: how an image becomes the encoder's input.
    """

    encoded: Sequence[bytes]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, i: int) -> np.ndarray:
        return preprocess(decode_image(self.encoded[i]), self.preprocessing)

    def random_crop(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """Crop at random out of a slightly larger image. No mirroring: captions speak of left and right."""
        size = self.preprocessing.image_size
        larger = replace(self.preprocessing, image_size=round(size * CROP_MARGIN))
        image = preprocess(decode_image(self.encoded[i]), larger)
        top, left = rng.integers(0, larger.image_size - size + 1, 2)
        return image[top : top + size, left : left + size]


def pad_captions(captions: Sequence[np.ndarray], max_tokens: int) -> dict[str, np.ndarray]:
    """Stack captions into `tokens` [B, max_tokens], cut or filled with PAD, and `mask` [B, max_tokens - 1]."""
    tokens = np.full((len(captions), max_tokens), SPECIAL_IDS.pad, np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        row[: len(caption)] = caption[:max_tokens]
    return {"tokens": tokens, "mask": tokens[:, 1:] != SPECIAL_IDS.pad}


# Grain prints what it runs, to describe it: that would be the captions of all images.
@dataclass(frozen=True, repr=False)
class _DrawExample(grain.transforms.RandomMap):
    """From the number of an image to the image with some of its captions; goes to worker processes."""

    records: Sequence[CaptionRecord]
    captions: Sequence[Sequence[np.ndarray]]
    rows: Rows
    captions_per_image: int
    max_tokens: int
    augment: bool

    def random_map(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        """Choose captions without repetition while there are enough, and a crop if images are augmented."""
        choice = self.captions[i]
        chosen = np.resize(rng.permutation(len(choice))[: self.captions_per_image], self.captions_per_image)
        row = self.rows.random_crop(i, rng) if self.augment else self.rows[i]
        return {
            "features" if isinstance(row, Features) else "image": row,
            **pad_captions([choice[c] for c in chosen], self.max_tokens),
            "image_id": np.int64(self.records[i].image_id),
            "valid": np.True_,
        }


def training_batches(
    records: Sequence[CaptionRecord],
    rows: Rows,
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    captions_per_image: int,
    max_tokens: int,
    seed: int,
    augment: bool = False,
    num_workers: int = 0,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Draw images without end, in a new order each epoch, with random captions of each.

    Args:
        records: the split's captions; images without captions are passed over.
        rows: the split's images or features, in the order of `records`.
        vocabulary: encodes the captions.
        batch_size: B captions over all processes; B / captions_per_image images.
        captions_per_image: captions drawn of one image, without repetition while it has enough.
        max_tokens: L + 1, ids kept of a caption, START included.
        seed: of order and choice.
        augment: crop images at random.
        num_workers: processes that decode images; 0 decodes in threads.
        first_batch: batches of the run that have been seen before.
        process_index: which part of each batch to produce.
        process_count: among how many processes a batch is divided.

    Raises:
        CapjaxError: if there is nothing to draw, or the sizes do not divide.
    """
    captions = [[vocabulary.encode(caption) for caption in record.captions] for record in records]
    drawable = [i for i, choice in enumerate(captions) if choice]
    if not drawable:
        raise CapjaxError("expected images with captions to train on, the split has none")
    if batch_size % (captions_per_image * process_count):
        raise CapjaxError(
            f"expected a batch size that is a multiple of {captions_per_image} captions per image × {process_count} "
            f"processes, got {batch_size}"
        )

    if augment and not isinstance(rows, ImageRows):
        raise CapjaxError("augmentation needs images, got cached features; set train.augment = False")
    local_batches = (
        grain.MapDataset.source(drawable)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_DrawExample(records, captions, rows, captions_per_image, max_tokens, augment))
        .batch(batch_size // captions_per_image // process_count, drop_remainder=True)
        .map(_flatten_captions)
    )
    dataset = local_batches[first_batch * process_count + process_index :: process_count].to_iter_dataset(READ_OPTIONS)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read its flags, which this program has no use for
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_leave_signals_to_the_run)
    return iter(dataset)


def _leave_signals_to_the_run(worker: int, num_workers: int) -> None:
    """Let a worker live through Ctrl-C and a scheduler's SIGTERM, which reach it too; the run ends it when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _flatten_captions(batch: dict[str, Any]) -> dict[str, Any]:
    """Join the caption axes: [N, captions_per_image, …] to [B, …]."""
    flat = {key: batch[key].reshape(-1, batch[key].shape[-1]) for key in ("tokens", "mask")}
    return {**batch, **flat}


def validation_batches(
    records: Sequence[CaptionRecord],
    rows: Rows,
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    captions_per_image: int,
    max_tokens: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Go once over every caption, for the loss; what fills up the last batch is masked.

    Args: as of `training_batches`. An image with more captions than `captions_per_image` comes several times.
    """
    groups = [
        (i, record.captions[at : at + captions_per_image])
        for i, record in enumerate(records)
        for at in range(0, len(record.captions), captions_per_image)
    ]
    for part in _parts(len(groups), batch_size // captions_per_image, process_index, process_count):
        captions = []
        for g, valid in part:
            encoded = [vocabulary.encode(caption) for caption in groups[g][1]] if valid else []
            captions += encoded + [np.zeros(0, np.int32)] * (captions_per_image - len(encoded))
        yield {
            **_visual_batch(records, rows, [(groups[g][0], valid) for g, valid in part]),
            **pad_captions(captions, max_tokens),
        }


def image_batches(
    records: Sequence[CaptionRecord],
    rows: Rows,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Go once over every image, for decoding; rows that fill up the last batch have `valid` false."""
    for part in _parts(len(records), batch_size, process_index, process_count):
        yield _visual_batch(records, rows, part)


def visual_rows(values: Sequence[Any]) -> Any:
    """Stack the elements of `Rows`: images [N, S, S, 3], or the `Features` of N images."""
    if not isinstance(values[0], Features):
        return np.stack(values)
    grid = None if values[0].grid is None else np.stack([value.grid for value in values])
    return Features(np.stack([value.pooled for value in values]), grid)


def _visual_batch(records: Sequence[CaptionRecord], rows: Rows, part: Sequence[tuple[int, bool]]) -> dict[str, Any]:
    visual = visual_rows([rows[i] for i, _ in part])
    return {
        "features" if isinstance(visual, Features) else "image": visual,
        "image_id": np.asarray([records[i].image_id for i, _ in part], np.int64),
        "valid": np.asarray([valid for _, valid in part]),
    }


def _parts(num_rows: int, batch_size: int, process_index: int, process_count: int) -> Iterator[list[tuple[int, bool]]]:
    """Deal rows 0 … num_rows - 1 into equal batches and these to processes; the last is filled up with row 0."""
    if batch_size < process_count or batch_size % process_count:
        raise CapjaxError(f"expected a batch size that is a multiple of {process_count} processes, got {batch_size}")
    local = batch_size // process_count
    for start in range(0, num_rows, batch_size):
        rows = range(start + process_index * local, start + (process_index + 1) * local)
        yield [(i, True) if i < num_rows else (0, False) for i in rows]
