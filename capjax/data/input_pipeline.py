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

import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from capjax.data.tokenized_captions import EncodedCaptions
from capjax.errors import CapjaxError, LostProcess
from capjax.host.waiting import waiting_for
from capjax.images import Preprocessing, decode_image, preprocess
from capjax.text.vocabulary import Vocabulary
from capjax.types import SPECIAL_IDS, CaptionRecord, Features

# Grain's default of 16 threads and 500 elements costs 100 MB and is slower on small machines.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

# Fewer images than that: an epoch in Grain's own order takes 35 ms at least, and meanwhile no other thread runs.
SLOW_TO_SHUFFLE = 1000

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

    @property
    def place(self) -> str:
        """Where they lie, for messages."""
        return getattr(self.encoded, "place", "the images")

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


class _OrdersOfFew(Sequence[int]):
    """A few images over and over, in a new order each epoch, where `grain.MapDataset.shuffle` would be slow."""

    def __init__(self, images: Sequence[int], seed: int) -> None:
        self._images, self._seed = images, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number, len(self._images))
        return self._images[_order(len(self._images), self._seed, epoch)[place]]


@functools.lru_cache(maxsize=4)  # several threads at the turn of an epoch
def _order(num_images: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng((seed, epoch)).permutation(num_images).tolist()


# Grain prints what it runs, to describe it: that would be the captions of all images.
@dataclass(frozen=True, repr=False)
class _DrawExample(grain.transforms.RandomMap):
    """From the number of an image to the image with some of its captions; goes to worker processes."""

    captions: EncodedCaptions
    rows: Rows
    captions_per_image: int
    max_tokens: int
    augment: bool

    def random_map(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        """Choose captions without repetition while there are enough, and a crop if images are augmented."""
        choice = self.captions.of_image(i)
        chosen = np.resize(rng.permutation(len(choice))[: self.captions_per_image], self.captions_per_image)
        row = self.rows.random_crop(i, rng) if self.augment else self.rows[i]
        return {
            "features" if isinstance(row, Features) else "image": row,
            **pad_captions([self.captions[choice[c]] for c in chosen], self.max_tokens),
            "image_id": self.captions.image_ids[i],
            "valid": np.True_,
        }


def training_batches(
    captions: EncodedCaptions,
    rows: Rows,
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
        captions: of the split's images; those without captions are passed over.
        rows: the split's images or features, in the same order.
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
    drawable = captions.captioned_images
    if not len(drawable):
        raise CapjaxError("expected images with captions to train on, the split has none")
    if batch_size % (captions_per_image * process_count):
        raise CapjaxError(
            f"expected a batch size that is a multiple of {captions_per_image} captions per image × {process_count} "
            f"processes, got {batch_size}"
        )

    if augment and not isinstance(rows, ImageRows):
        raise CapjaxError("augmentation needs images, got cached features; set train.augment = False")
    if len(drawable) < SLOW_TO_SHUFFLE:
        images = grain.MapDataset.source(_OrdersOfFew(drawable, seed)).seed(seed)
    else:
        images = grain.MapDataset.source(drawable).seed(seed).shuffle().repeat()
    local_batches = (
        images.random_map(_DrawExample(captions, rows, captions_per_image, max_tokens, augment))
        .batch(batch_size // captions_per_image // process_count, drop_remainder=True)
        .map(_flatten_captions)
    )
    dataset = local_batches[first_batch * process_count + process_index :: process_count].to_iter_dataset(READ_OPTIONS)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read its flags, which this program has no use for
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_live_as_long_as_the_run)
    return patiently(iter(dataset), rows)


def _live_as_long_as_the_run(worker: int, num_workers: int) -> None:
    """Let a worker live through Ctrl-C and a scheduler's SIGTERM, which reach it too, and end after the run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # whoever was killed has told nobody to end

    threading.Thread(target=follow, daemon=True).start()


def patiently(batches: Iterator[Any], rows: Rows) -> Iterator[Any]:
    """Pass batches on, and say when one does not come.

    Raises:
        LostProcess: if a worker process died.
    """
    wait = f"the next batch of {getattr(rows, 'place', 'the data')} (does the disk answer?)"
    while True:
        try:
            with waiting_for(wait):
                batch = next(batches, None)
        except RuntimeError as error:
            if not re.search("orker process .*was terminated", str(error)):
                raise
            raise LostProcess(
                "expected all worker processes of the input pipeline, one was killed, perhaps as memory was short; "
                "start the same command again, with fewer --config.train.num_workers if it happens once more"
            ) from None
        if batch is None:
            return
        yield batch


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
    """Go once over every caption, for the loss, and over every image that has some.

    Args:
        records: of the split.
        rows: its images or features, in the same order.
        vocabulary: encodes the captions.
        batch_size: N images over all processes.
        captions_per_image: B / N; what an image lacks, or the last batch, is masked. An image with more captions comes
            several times, `valid` only the first time.
        max_tokens: L + 1.
        process_index: which part of each batch to produce.
        process_count: among how many processes a batch is divided.
    """
    groups = [(i, at) for i, record in enumerate(records) for at in range(0, len(record.captions), captions_per_image)]

    def example(group: int, is_one: bool) -> dict[str, Any]:
        i, at = groups[group]
        captions = records[i].captions[at : at + captions_per_image] if is_one else ()
        encoded = [vocabulary.encode(caption) for caption in captions]
        encoded += [np.zeros(0, np.int32)] * (captions_per_image - len(encoded))
        return {**_visual_example(records, rows, i, is_one and at == 0), **pad_captions(encoded, max_tokens)}

    return map(_flatten_captions, _in_order(example, len(groups), rows, batch_size, process_index, process_count))


def image_batches(
    records: Sequence[CaptionRecord],
    rows: Rows,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Go once over every image, for decoding; rows that fill up the last batch have `valid` false."""
    return _in_order(
        lambda i, is_one: _visual_example(records, rows, i, is_one),
        len(records),
        rows,
        batch_size,
        process_index,
        process_count,
    )


def _visual_example(records: Sequence[CaptionRecord], rows: Rows, i: int, valid: bool) -> dict[str, Any]:
    row = rows[i]
    return {
        "features" if isinstance(row, Features) else "image": row,
        "image_id": np.int64(records[i].image_id),
        "valid": np.bool_(valid),
    }


def _in_order(
    example: Callable[[int, bool], dict[str, Any]],
    num_examples: int,
    rows: Rows,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> Iterator[dict[str, Any]]:
    """Deal examples 0 … num_examples - 1 into equal batches and these to processes; threads read ahead.

    Args:
        example: makes one, given its number and whether it is one: number 0 also fills up the last batch.
        num_examples: how many there are.
        rows: where they come from.
        batch_size: over all processes.
        process_index: which part of each batch to produce.
        process_count: among how many processes a batch is divided.

    Raises:
        CapjaxError: if the batch does not divide.
    """
    if batch_size < process_count or batch_size % process_count:
        raise CapjaxError(f"expected a batch size that is a multiple of {process_count} processes, got {batch_size}")
    local = batch_size // process_count

    def make(k: int) -> dict[str, Any]:
        i = k // local * batch_size + process_index * local + k % local
        return example(i, True) if i < num_examples else example(0, False)

    numbers = range(-(-num_examples // batch_size) * local)
    # One batch ahead: several of the large ones that validation takes would fill the memory.
    ahead = replace(READ_OPTIONS, prefetch_buffer_size=local)
    examples = grain.MapDataset.source(numbers).map(make).to_iter_dataset(ahead)
    return patiently(iter(examples.batch(local)), rows)
