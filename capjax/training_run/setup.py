"""What a training run works with, whatever its objective: data, vocabulary, model, optimiser and first state."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from capjax import assembly, split_rows
from capjax import config as configuration
from capjax.data.caption_records import CaptionRecords
from capjax.data.input_pipeline import Rows, training_batches
from capjax.data.tokenized_captions import TokenizedCaptions, tokenized_captions
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.hub import model_folder
from capjax.model_directory import ModelDirectory, load_model_directory
from capjax.models import TRAINING_ONLY, Captioner
from capjax.pretrained.encoder_file import LoadedEncoder, config_from
from capjax.sharding import DATA_AXIS, check_vocabulary, shard_state
from capjax.text.vocabulary import Vocabulary
from capjax.training.optimizer import make_optimizer
from capjax.training.schedules import make_schedule
from capjax.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a training run works with, whatever its objective.

    Attributes:
        config: of the run.
        mesh: its devices.
        encoder: the pretrained encoder; None where features come from another program.
        records: the training split's captions, as they lie on the disk.
        captions: the same, tokenised.
        rows: its images or features, in the same order.
        vocabulary: of the training captions, or of the model that the run starts from.
        model: the captioner. One fed from cached features has no encoder: that is left to the model directory.
        start: the model that the run starts from, if any.
    """

    config: ConfigDict
    mesh: Mesh
    encoder: LoadedEncoder | None
    records: CaptionRecords
    captions: TokenizedCaptions
    rows: Rows
    vocabulary: Vocabulary
    model: Captioner
    start: ModelDirectory | None

    @functools.cached_property
    def data_identity(self) -> dict[str, Any]:
        """What tells whether a run that goes on is trained on the data that it was begun with."""
        return {
            "vocabulary_sha256": self.vocabulary.sha256,
            "records_sha256": self.captions.records_sha256,
            "images_sha256": split_rows.images_sha256(self.config, self.config.dataset.train_split, self.encoder),
            "features": self.features_key,
            "encoder": None if self.config.features.dir else split_rows.encoder_key(self.config, self.encoder),
        }

    @functools.cached_property
    def features_key(self) -> dict[str, Any] | None:
        """The key of the feature store that the run trains on; None if it trains on images."""
        return split_rows.open_features(self.config, self.encoder).key if self.config.features.dir else None


def setup_from(config: ConfigDict, mesh: Mesh) -> Setup:
    """Open the training data and build the model.

    Raises:
        CapjaxError: if something in the configuration or the data does not fit.
    """
    _check_batch(config, mesh)
    start = _load_start(config) if config.train.init_from else None
    encoder = assembly.encoder_from(config)
    records, rows = split_rows.open_split(config, config.dataset.train_split, encoder, config.train.dtype)
    captions = tokenized_captions(records, start.vocabulary.tokenizer if start else config.vocabulary.tokenizer)
    if not captions.image_starts[-1]:
        raise CapjaxError(f"expected images with captions to train on, split {config.dataset.train_split!r} has none")
    vocabulary = start.vocabulary if start else Vocabulary.from_counts(captions.counts, **config.vocabulary.to_dict())
    check_vocabulary(len(vocabulary), mesh, is_given=start is not None)
    DecoderSettings.from_dict(config.search.to_dict()).with_token_ids(vocabulary.ids)  # all words known
    fed_images = not config.features.dir
    model = assembly.captioner_from(config, len(vocabulary), encoder.config if fed_images else None)
    setup = Setup(config, mesh, encoder, records, captions, rows, vocabulary, model, start)
    if start:
        _check_sees_alike(setup, start)
    return setup


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Refuse batches, or parts of them that are accumulated, that cannot be split evenly over the data axis.

    Raises:
        CapjaxError: with a size that can.
    """
    train, num_devices = config.train, mesh.shape[DATA_AXIS]
    unit = num_devices * train.captions_per_image * train.accumulate_steps
    if train.batch_size % unit:
        raise CapjaxError(
            f"expected a train.batch_size that divides over {num_devices} devices (or groups of them), "
            f"captions_per_image {train.captions_per_image} and accumulate_steps {train.accumulate_steps}, got "
            f"{train.batch_size}; try {-(-train.batch_size // unit) * unit}"
        )


def _check_sees_alike(setup: Setup, start: ModelDirectory) -> None:
    """Refuse cached features that are not what the model to start from sees, or another network to see images with.

    The size of images and how they are cut may change with a run that is fed them.

    Raises:
        CapjaxError: if another encoder or program made the features, or the network is another.
    """
    if not setup.config.features.dir:
        mine = dataclasses.asdict(setup.encoder.config)
        theirs = dataclasses.asdict(config_from(start.encoder)) if start.encoder else {}
        fields = {"final_endpoint": "endpoint", "grid_side": "grid_side"}
        if setup.config.encoder.weights == "random":
            fields["depth_multiplier"] = "depth_multiplier"
        for name, value in theirs.items():
            if mine[name] != value and name not in ("image_size", "source", "num_classes"):
                raise CapjaxError(
                    f"expected an encoder as that of {setup.config.train.init_from}, whose {name} is {value!r}, got "
                    f"{mine[name]!r}; set --config.encoder.{fields.get(name, 'weights')}"
                )
        return
    if start.encoder:
        weights = {part: start.variables[part]["encoder"] for part in ("params", "batch_stats")}
        theirs = configuration.from_dict(start.config, setup.config.train.init_from)
        encoder = LoadedEncoder(config_from(start.encoder), weights)
        same = split_rows.encoder_key(setup.config, setup.encoder) == split_rows.encoder_key(theirs, encoder)
    else:
        mine, theirs = ({**(key or {}), "dataset": None} for key in (setup.features_key, start.features))
        same = mine == theirs
    if not same:
        raise CapjaxError(
            f"expected features as {setup.config.train.init_from} sees, {setup.config.features.dir} holds others; "
            "name the right ones, or let it look at images with --config.features.dir="
        )


def make_optimization(config: ConfigDict) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Build the learning rate by step, and the optimiser that follows it.

    Raises:
        CapjaxError: if the configuration makes none.
    """
    section = config.optimizer
    schedule = make_schedule(
        section.schedule,
        section.learning_rate,
        config.train.num_steps,
        section.warmup_steps,
        section.decay_steps,
        section.decay_rate,
    )
    optimizer = make_optimizer(
        section.name,
        schedule,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        encoder_scale=config.encoder.learning_rate_scale,
    )
    return schedule, optimizer


def initial_state(setup: Setup, key: jax.Array, optimizer: optax.GradientTransformation) -> TrainState:
    """Make the state of a run before its first step: drawn and pretrained weights, or those it starts from."""
    features = split_rows.first_features(setup.rows, setup.encoder, setup.config.encoder.grid)
    variables = assembly.initial_variables(setup.model, key, features, setup.encoder, drawn=setup.start is None)
    if setup.start:
        variables = _started(variables, setup.start, setup.config.train.init_from)
    keep_ema = setup.config.train.ema_decay > 0
    return shard_state(TrainState.create(variables, optimizer, keep_ema), setup.mesh)


def local_batches(setup: Setup, first_batch: int) -> Iterator[dict[str, Any]]:
    """Go on with this process's parts of the batches of a run after `first_batch` of them."""
    train = setup.config.train
    return training_batches(
        setup.captions.encode(setup.vocabulary),
        setup.rows,
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


def _load_start(config: ConfigDict) -> ModelDirectory:
    """Load the model that a run starts from.

    Raises:
        CapjaxError: if there is none, or its decoder is another than the run's.
    """
    path = model_folder(config.train.init_from)
    try:
        start = load_model_directory(path / "model" if (path / "model" / "model.json").exists() else path)
    except CapjaxError as error:
        raise CapjaxError(f"{error} (train.init_from, which a run needs to go on as well)") from None
    theirs = configuration.from_dict(start.config, f"{path}/model.json").decoder.to_dict()
    if theirs["name"] != config.decoder.name:
        raise CapjaxError(
            f"expected the decoder {theirs['name']!r} of the model {path} that the run starts from, got "
            f"{config.decoder.name!r}; choose a recipe with the former"
        )
    for name, value in config.decoder.to_dict().items():
        if theirs.get(name) != value and name not in TRAINING_ONLY:
            raise CapjaxError(
                f"expected decoder.{name} = {theirs.get(name)!r} of the model {path} that the run starts from, got "
                f"{value!r}"
            )
    return start


def _started(variables: dict[str, Any], start: ModelDirectory, path: str) -> dict[str, Any]:
    """Put the weights of a model in the place of initial ones; what the run does not train of it is left out.

    Raises:
        CapjaxError: if they are not of the same shapes.
    """
    taken = {}
    for part, tree in variables.items():
        taken[part] = {}
        for name, initial in tree.items():
            weights = start.variables.get(part, {}).get(name)
            if weights is None and name == "encoder":  # it was trained on features
                weights = initial
            shapes = jax.tree.map(lambda x: x.shape, (initial, weights))
            if shapes[0] != shapes[1]:
                raise CapjaxError(
                    f"expected the {name} of the model {path} to have the shapes that the run's has, it differs: the "
                    "run must look at images, or features, as the model does"
                )
            taken[part][name] = weights
    return taken
