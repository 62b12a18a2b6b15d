"""From a configuration to the objects that every job works with: encoder, captioner, the rows of a split.

The ConfigDict ends here and in the tasks; everything below takes typed arguments.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from capjax import data
from capjax.data import feature_store
from capjax.data.input_pipeline import ImageRows, Rows
from capjax.errors import CapjaxError
from capjax.images import Preprocessing
from capjax.models import Captioner, build_decoder
from capjax.pretrained.encoder_file import (
    EncoderConfig,
    LoadedEncoder,
    cut_encoder,
    encoder_of,
    load_encoder,
    pool_grid,
)
from capjax.pretrained.random_encoder import random_encoder
from capjax.types import CaptionRecord, Features

SCENES_ENCODER = pathlib.Path(__file__).parent / "pretrained" / "scenes_encoder.safetensors"


def encoder_from(config: ConfigDict) -> LoadedEncoder | None:
    """Load the encoder that `config.encoder` names; None where features come from elsewhere."""
    encoder = _whole_encoder(config)
    if encoder and config.encoder.endpoint:
        encoder = cut_encoder(encoder, config.encoder.endpoint)
    if encoder and config.encoder.grid_side:
        encoder = pool_grid(encoder, config.encoder.grid_side)
    return encoder


def _whole_encoder(config: ConfigDict) -> LoadedEncoder | None:
    section = config.encoder
    match section.weights:
        case "":
            return None
        case "scenes":
            return load_encoder(SCENES_ENCODER)
        case "random":
            architecture = EncoderConfig(
                depth_multiplier=section.depth_multiplier,
                final_endpoint=section.final_endpoint,
                image_size=section.image_size,
                source="random",
            )
            return encoder_of(architecture, random_encoder(architecture, config.seed))
        case path:
            if not pathlib.Path(path).is_file():
                raise CapjaxError(
                    f"expected encoder weights at {path}, found no file; `capjax weights fetch --out={path}` gets them "
                    "(or set --config.encoder.weights)"
                )
            return load_encoder(path)


def preprocessing_from(config: ConfigDict, encoder: LoadedEncoder) -> Preprocessing:
    """Return how images become the encoder's input."""
    return Preprocessing(image_size=encoder.config.image_size, crop=config.encoder.crop)


def captioner_from(config: ConfigDict, vocab_size: int, encoder: EncoderConfig | None) -> Captioner:
    """Build the model; `encoder` None makes one that is fed features only."""
    decoder = build_decoder(**config.decoder.to_dict(), vocab_size=vocab_size, dtype=jnp.dtype(config.train.dtype))
    return Captioner(
        decoder,
        encoder and encoder.build(jnp.dtype(config.encoder.dtype)),
        freeze_encoder=config.encoder.learning_rate_scale == 0,
        train_batch_norm=config.encoder.train_batch_norm,
    )


def initial_variables(
    model: Captioner, key: jax.Array, features: Features, encoder: LoadedEncoder | None
) -> dict[str, Any]:
    """Draw the decoder's parameters and set the encoder's to the pretrained ones.

    Args:
        model: the captioner; `encoder` is used if it has an encoder.
        key: of the draw.
        features: of any one image [1, …], for shapes.
        encoder: the pretrained weights.
    """
    variables = jax.jit(model.init)(key, features, jnp.zeros((1, 1), jnp.int32))
    variables = {"params": dict(variables["params"])}
    return with_encoder(variables, encoder) if model.encoder is not None else variables


def with_encoder(variables: dict[str, Any], encoder: LoadedEncoder | None) -> dict[str, Any]:
    """Put the encoder's weights beside a decoder's; an encoder that is there already (fine-tuned) stays."""
    if encoder is None or "encoder" in variables["params"]:
        return variables
    return {
        "params": {**variables["params"], "encoder": encoder.variables["params"]},
        "batch_stats": {"encoder": encoder.variables["batch_stats"]},
    }


def feature_key(config: ConfigDict, encoder: LoadedEncoder | None) -> dict[str, Any]:
    """Return what cached features depend on, as far as it follows from a configuration.

    Args:
        config: names the dataset and says how images are seen.
        encoder: None where features come from another program.
    """
    if encoder is None:
        return {"dataset": config.dataset.name}
    architecture = dataclasses.asdict(encoder.config)
    del architecture["source"], architecture["num_classes"]
    if not architecture["grid_side"]:  # as stores say that are older than this field
        del architecture["grid_side"]
    return {
        "dataset": config.dataset.name,
        "encoder": architecture,
        "weights_sha256": encoder.sha256,
        "preprocessing": preprocessing_from(config, encoder).to_dict(),
        "compute_dtype": config.encoder.dtype,
    }


def open_features(config: ConfigDict, encoder: LoadedEncoder | None) -> feature_store.FeatureStore:
    """Open the feature store of a configuration.

    Raises:
        CapjaxError: if there is none, or it was made with another encoder or of another dataset.
    """
    return feature_store.open_store(config.features.dir, feature_key(config, encoder))


def open_split(config: ConfigDict, split: str, encoder: LoadedEncoder | None) -> tuple[Sequence[CaptionRecord], Rows]:
    """Open a split: its captions, and its cached features or its images.

    Where the dataset lies beside its features, they are compared: features of images that have changed are refused.

    Raises:
        CapjaxError: if something is missing, or does not fit the other.
    """
    if not config.features.dir:
        if encoder is None:
            raise CapjaxError("expected features.dir or encoder.weights to be set: there is nothing to see images with")
        dataset = data.load(config.dataset.name, config.dataset.data_dir or None)
        return dataset.records(split), ImageRows(dataset.images(split), preprocessing_from(config, encoder))
    store = open_features(config, encoder)
    records, rows = store.records(split), store.features(split, grid=config.encoder.grid)
    if data.is_prepared(config.dataset.name, config.dataset.data_dir or None):
        dataset = data.load(config.dataset.name, config.dataset.data_dir or None)
        if encoder is None:  # another program may have left out images
            known = {record.image_id for record in records}
            store.check_split(split, [r for r in dataset.records(split) if r.image_id in known])
        else:
            store.check_split(split, dataset.records(split), dataset.images_sha256(split))
    return records, rows


def first_features(rows: Rows, encoder: LoadedEncoder | None, grid: bool) -> Features:
    """Return zeros in the shape of the features of one image, batched."""
    if isinstance(rows, ImageRows):
        size = rows.preprocessing.image_size
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        shapes = jax.eval_shape(partial(encoder.config.build().apply, encoder.variables), image)
    else:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), rows[0])
    features = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return features if grid else features._replace(grid=None)
