"""How good a state is on the validation split: loss, perplexity, next-word accuracy and greedy CIDEr-D."""

import math

import jax
import numpy as np

from capjax import split_rows
from capjax.captioning import Generator
from capjax.data.input_pipeline import image_batches, validation_batches
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.metrics import coco_caption
from capjax.sharding import check_divides, shard_batch
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_validation_step
from capjax.training_setup import Setup

FEW_IMAGES = 100
"""With fewer validation images than this, CIDEr-D takes its document frequencies from the training captions.

The metric weighs words by the images whose references lack them. Among a handful of images that says nothing (of one or
two it is always 0), and the model that is kept would be chosen by chance.
"""


class Validation:
    """The validation split, opened once; calling it scores a state."""

    def __init__(self, setup: Setup) -> None:
        """Open the split; the programs compile when they are first needed.

        Raises:
            CapjaxError: if the split has no captions, or the batch does not fit the devices.
        """
        config = setup.config
        check_divides(config.eval.batch_size, "eval.batch_size", setup.mesh)
        records, self._rows = split_rows.open_split(config, config.dataset.val_split, setup.encoder)
        self._records = records[: config.eval.max_images or None]
        references = {record.image_id: record.captions for record in self._records if record.captions}
        if not references:
            raise CapjaxError(f"expected captions in the validation split {config.dataset.val_split!r}, it has none")
        self._references = coco_caption.References(references)
        self.has_few_images = len(references) < FEW_IMAGES
        self._df = None
        if self.has_few_images:
            captioned = {record.image_id: record.captions for record in setup.records if record.captions}
            self._df = coco_caption.References(captioned).df
        self._setup = setup
        self._settings = DecoderSettings(max_length=config.search.max_length)
        # Images are encoded once for all of their captions; features can as well be repeated.
        most = max(map(len, references.values()))
        self._captions_per_image = min(5, most) if not config.features.dir else 1
        self._processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        self._step = jit_validation_step(setup.mesh, model=setup.model)
        self._generator = Generator([setup.model], setup.vocabulary, setup.mesh)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Score a state; equal on all processes."""
        loss, correct, count = self._sum_words(state)
        captions = self._caption(state)
        hypotheses = {image_id: captions[image_id] for image_id in self._references.image_ids}
        scores = coco_caption.score(self._references, hypotheses, metrics=("CIDEr-D",), df=self._df)
        return {
            "val/loss": loss / count,
            "val/perplexity": math.exp(min(loss / count, 700.0)),
            "val/accuracy": correct / count,
            "val/CIDEr-D": scores.corpus["CIDEr-D"],
        }

    def _sum_words(self, state: TrainState) -> np.ndarray:
        """Add up loss, right words and words of all captions."""
        config, setup = self._setup.config, self._setup
        totals = np.zeros(3)
        for batch in validation_batches(
            self._records,
            self._rows,
            setup.vocabulary,
            batch_size=config.eval.batch_size * self._captions_per_image,
            captions_per_image=self._captions_per_image,
            max_tokens=config.train.max_tokens,
            **self._processes,
        ):
            totals += np.asarray(self._step(state, shard_batch(batch, setup.mesh)), np.float64)
        return totals

    def _caption(self, state: TrainState) -> dict[int, str]:
        """Caption all images greedily."""
        batches = image_batches(
            self._records, self._rows, batch_size=self._setup.config.eval.batch_size, **self._processes
        )
        found = self._generator([state.eval_variables], batches, self._settings)
        return {caption.image_id: caption.text for caption in found}
