"""Maximum likelihood of the captions, word by word under teacher forcing."""

from collections.abc import Iterator

import jax

from capjax.sharding import shard_batch
from capjax.training.scheduled_sampling import make_teacher_share
from capjax.training.train_state import TrainState
from capjax.training.update import Batch, Metrics
from capjax.training.xe_step import jit_train_step
from capjax.training_run.setup import Setup, initial_state, local_batches, make_optimization


class CrossEntropy:
    """The objective of that name; see `capjax.training_run.objectives.Objective`."""

    def __init__(self, setup: Setup) -> None:
        """Build schedule, optimiser and step.

        Raises:
            CapjaxError: if the configuration does not fit the devices or itself.
        """
        config = setup.config
        self._setup = setup
        self._init_key, self._step_key = jax.random.split(jax.random.key(config.seed))
        self._schedule, self._optimizer = make_optimization(config)
        self._step = jit_train_step(
            setup.mesh,
            model=setup.model,
            optimizer=self._optimizer,
            label_smoothing=config.train.label_smoothing,
            accumulate_steps=config.train.accumulate_steps,
            teacher_share=make_teacher_share(**config.scheduled_sampling.to_dict()),
            unused_ids=setup.vocabulary.unused_ids,
            ema_decay=config.train.ema_decay,
        )

    def init(self) -> TrainState:
        """Draw the decoder's parameters, or take them from the model that the run starts from."""
        return initial_state(self._setup, self._init_key, self._optimizer)

    def batches(self, first_batch: int) -> Iterator[Batch]:
        """Go on with the global batches after `first_batch` of them."""
        return (shard_batch(b, self._setup.mesh) for b in local_batches(self._setup, first_batch))

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Do one update on a global batch."""
        return self._step(state, batch, self._step_key)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate that led to step `step`."""
        return float(self._schedule(step - 1))
