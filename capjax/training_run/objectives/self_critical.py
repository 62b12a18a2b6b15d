"""Reinforcement on the metric itself: self-critical sequence training, with CIDEr-D computed on the devices."""

import math
from collections.abc import Iterator

import jax
import numpy as np

from capjax.errors import CapjaxError
from capjax.metrics.caption_health import DANGLING_WORDS
from capjax.sharding import replicate, shard_batch
from capjax.training.scst_step import BASELINES, RewardTables, SelfCriticalSettings, jit_scst_step
from capjax.training.train_state import TrainState
from capjax.training.update import Batch, Metrics
from capjax.training_run.objectives.packed_references import pack_references
from capjax.training_run.setup import Setup, initial_state, local_batches, make_optimization


class SelfCritical:
    """The objective of that name; see `capjax.training_run.objectives.Objective` and `capjax.training.scst_step`."""

    def __init__(self, setup: Setup) -> None:
        """Pack the references, build schedule, optimiser and step.

        Raises:
            CapjaxError: if the configuration does not fit the devices or itself.
        """
        config, train = setup.config, setup.config.train
        settings = SelfCriticalSettings(
            **config.self_critical.to_dict(),
            max_length=config.search.max_length,
            unused_ids=setup.vocabulary.unused_ids,
        )
        _check(settings)
        if not train.init_from:
            raise CapjaxError(
                "expected train.init_from to name a trained model: reinforcement starts from one that can say something"
            )
        if train.label_smoothing or config.scheduled_sampling.schedule:
            raise CapjaxError(
                "train.label_smoothing and scheduled_sampling have no meaning for train.objective=self_critical: set "
                "--config.train.label_smoothing=0.0 --config.scheduled_sampling.schedule="
            )
        if config.eval.best_metric in ("loss", "accuracy"):
            raise CapjaxError(
                "expected eval.best_metric to be a score for train.objective=self_critical, which makes people's words "
                f"less likely, got {config.eval.best_metric!r}; set --config.eval.best_metric=CIDEr-D"
            )
        self._setup = setup
        _, self._step_key = jax.random.split(jax.random.key(config.seed))
        self._schedule, self._optimizer = make_optimization(config)
        self._references = pack_references(setup.captions, setup.vocabulary)
        self._by_id = np.argsort(setup.captions.image_ids)
        is_dangling = np.asarray([word in DANGLING_WORDS for word in setup.vocabulary.words])
        tables = RewardTables(self._references.trie, self._references.number_of_token, is_dangling)
        self._tables = replicate(tables, setup.mesh)
        self._step = jit_scst_step(
            setup.mesh,
            model=setup.model,
            optimizer=self._optimizer,
            settings=settings,
            accumulate_steps=train.accumulate_steps,
            ema_decay=train.ema_decay,
        )

    def init(self) -> TrainState:
        """Start from the model that `train.init_from` names."""
        return initial_state(self._setup, self._step_key, self._optimizer)

    def batches(self, first_batch: int) -> Iterator[Batch]:
        """Go on with the global batches after `first_batch` of them, the images' references beside their captions."""
        for batch in local_batches(self._setup, first_batch):
            places = np.searchsorted(self._setup.captions.image_ids, batch["image_id"], sorter=self._by_id)
            yield shard_batch(batch | self._references.of_images(self._by_id[places]), self._setup.mesh)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Do one update on a global batch."""
        return self._step(state, batch, self._tables, self._step_key)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate that led to step `step`."""
        return float(self._schedule(step - 1))


def _check(settings: SelfCriticalSettings) -> None:
    if settings.baseline not in BASELINES:
        raise CapjaxError(f"expected self_critical.baseline out of {list(BASELINES)}, got {settings.baseline!r}")
    least = 2 if settings.baseline == "mean" else 1
    if settings.num_samples < least:
        raise CapjaxError(
            f"expected self_critical.num_samples of at least {least} with the baseline {settings.baseline!r}, "
            f"got {settings.num_samples}"
        )
    if not 1e-3 <= settings.temperature < math.inf:
        raise CapjaxError(f"expected self_critical.temperature of at least 0.001, finite, got {settings.temperature}")
    for name in ("bleu_weight", "xe_weight"):
        if not getattr(settings, name) >= 0:
            raise CapjaxError(f"expected self_critical.{name} of at least 0, got {getattr(settings, name)}")
