"""Maximum likelihood of the captions, word by word under teacher forcing."""

from collections.abc import Iterator

import jax

from capjax import assembly
from capjax.assembly import Setup
from capjax.data.input_pipeline import training_batches
from capjax.sharding import check_divides, replicate, shard_batch
from capjax.training.optimizer import make_optimizer
from capjax.training.scheduled_sampling import make_teacher_share
from capjax.training.schedules import make_schedule
from capjax.training.train_state import TrainState
from capjax.training.xe_step import Batch, Metrics, jit_train_step


class CrossEntropy:
    """The task of that name; see `capjax.tasks.Task`."""

    metric_names = ("loss", "accuracy", "num_words", "gradient_norm", "update_norm")

    def __init__(self, setup: Setup) -> None:
        """Build schedule, optimiser and step.

        Raises:
            CapjaxError: if the configuration does not fit the devices or itself.
        """
        config = setup.config
        self._setup = setup
        num_images = config.train.batch_size // config.train.captions_per_image
        check_divides(num_images // config.train.accumulate_steps, "images of a batch or microbatch (train.batch_size)")
        self._init_key, self._step_key = jax.random.split(jax.random.key(config.seed))
        self._schedule = make_schedule(
            config.optimizer.schedule,
            config.optimizer.learning_rate,
            config.train.num_steps,
            config.optimizer.warmup_steps,
            config.optimizer.decay_steps,
            config.optimizer.decay_rate,
        )
        self._optimizer = make_optimizer(
            config.optimizer.name,
            self._schedule,
            weight_decay=config.optimizer.weight_decay,
            clip_norm=config.optimizer.clip_norm,
            encoder_scale=config.encoder.learning_rate_scale,
        )
        self._step = jit_train_step(
            setup.mesh,
            model=setup.model,
            optimizer=self._optimizer,
            label_smoothing=config.train.label_smoothing,
            accumulate_steps=config.train.accumulate_steps,
            teacher_share=make_teacher_share(**config.scheduled_sampling.to_dict()),
            ema_decay=config.train.ema_decay,
        )

    def init(self) -> TrainState:
        """Draw the decoder's parameters; the encoder's are the pretrained ones."""
        setup = self._setup
        features = assembly.first_features(setup.rows, setup.encoder, setup.config.encoder.grid)
        variables = assembly.initial_variables(setup.model, self._init_key, features, setup.encoder)
        keep_ema = setup.config.train.ema_decay > 0
        return replicate(TrainState.create(variables, self._optimizer, keep_ema), setup.mesh)

    def batches(self, first_batch: int) -> Iterator[Batch]:
        """Go on with the global batches after `first_batch` of them."""
        setup, train = self._setup, self._setup.config.train
        local_batches = training_batches(
            setup.records,
            setup.rows,
            setup.vocabulary,
            batch_size=train.batch_size,
            captions_per_image=train.captions_per_image,
            max_tokens=train.max_tokens,
            seed=setup.config.seed,
            augment=train.augment,
            num_workers=train.num_workers,
            first_batch=first_batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (shard_batch(batch, setup.mesh) for batch in local_batches)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Do one update on a global batch."""
        return self._step(state, batch, self._step_key)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate that led to step `step`."""
        return float(self._schedule(step - 1))
