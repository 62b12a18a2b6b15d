"""How good a state is on the validation split: loss, perplexity, next-word accuracy and greedy CIDEr-D."""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from capjax import split_rows
from capjax.captioning.generator import Caption, Generator
from capjax.data.caption_records import record_identity
from capjax.data.input_pipeline import validation_batches
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.host.waiting import DEVICES, waiting_for
from capjax.metrics import coco_caption
from capjax.metrics.coco_caption import FEW_IMAGES
from capjax.sharding import batch_sharded, check_divides, one_ahead, shard_batch
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_validation_step
from capjax.training_run.setup import Setup

MOST_IMAGES_COUNTED = 100_000
"""The first so many training images have their captions counted for that, at most."""


class Validation:
    """The validation split, opened once; calling it scores a state.

    Attributes:
        records: that are validated on.
        has_few_images: whether their CIDEr-D is weighed by the training captions, see `FEW_IMAGES` there.
    """

    def __init__(self, setup: Setup) -> None:
        """Open the split; the programs compile when they are first needed.

        Raises:
            CapjaxError: if the split has no captions, or the batch does not fit the devices.
        """
        config = setup.config
        check_divides(config.eval.batch_size, "eval.batch_size", setup.mesh)
        records, self._rows = split_rows.open_split(config, config.dataset.val_split, setup.encoder, config.train.dtype)
        self.records = records[: config.eval.max_images or None]
        references = {record.image_id: record.captions for record in self.records if record.captions}
        if not references:
            what = f"its first {len(self.records)} images have" if config.eval.max_images else "it has"
            raise CapjaxError(f"expected captions in the validation split {config.dataset.val_split!r}, {what} none")
        self._references = coco_caption.References(references)
        self.has_few_images = len(references) < FEW_IMAGES
        self._df = None
        if self.has_few_images:
            few = itertools.islice(setup.records, MOST_IMAGES_COUNTED)
            captioned = {record.image_id: record.captions for record in few if record.captions}
            self._df = coco_caption.References(captioned).df
        self._setup = setup
        self._settings = DecoderSettings(max_length=config.search.max_length)
        self._captions_per_image = min(5, max(map(len, references.values())))
        self._encode = jax.jit(
            lambda state, inputs: setup.model.apply(state.eval_variables, inputs, method="encode"),
            out_shardings=batch_sharded(setup.mesh),
        )
        self._sum_words = jit_validation_step(setup.mesh, model=setup.model)
        self._generator = Generator([setup.model], setup.vocabulary, setup.mesh)

    @functools.cached_property
    def data_identity(self) -> dict[str, Any]:
        """What tells whether the scores of a run that goes on can be compared with those from before."""
        config, digest = self._setup.config, hashlib.sha256()
        for record in self.records:
            digest.update(record_identity(record))
        images_sha256 = split_rows.images_sha256(config, config.dataset.val_split, self._setup.encoder)
        return {"val_records_sha256": digest.hexdigest(), "val_images_sha256": images_sha256}

    def batches(self) -> Iterator[dict[str, Any]]:
        """Go once over this process's parts of the split."""
        config = self._setup.config
        return validation_batches(
            self.records,
            self._rows,
            self._setup.vocabulary,
            batch_size=config.eval.batch_size,
            captions_per_image=self._captions_per_image,
            max_tokens=config.train.max_tokens,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def __call__(self, state: TrainState) -> tuple[dict[str, float], dict[int, str]]:
        """Score a state, in one pass over the split.

        Returns:
            Scores by name, and the captions that the state writes, by image id; equal on all processes.
        """

        def begin(batch: dict[str, Any]) -> tuple[Any, Iterator[Caption]]:
            on_devices = shard_batch(batch, self._setup.mesh)
            if "image" in on_devices:  # seen once, for the loss and for the captions
                on_devices["features"] = self._encode(state, on_devices.pop("image"))
            return self._sum_words(state, on_devices), self._generator.caption(
                [state.eval_variables], on_devices["features"], batch["image_id"], batch["valid"], self._settings
            )

        sums, captions = [], {}
        for of_batch, captions_of_batch in one_ahead(map(begin, self.batches())):
            sums.append(of_batch)
            captions |= {caption.image_id: caption.text for caption in captions_of_batch}
        with waiting_for(DEVICES):
            loss, correct, count = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
        scores = coco_caption.score(self._references, captions, metrics=("CIDEr-D",), df=self._df)
        return {
            "val/loss": loss / count,
            "val/perplexity": math.exp(min(loss / count, 700.0)),
            "val/accuracy": correct / count,
            "val/CIDEr-D": scores.corpus["CIDEr-D"],
        }, captions
