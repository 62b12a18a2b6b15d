"""From a configuration to the models that every job works with: the encoder, the captioner and its first weights.

The ConfigDict ends here and in the rooms around; data, models, training, decoding and metrics take typed arguments.
"""

import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from capjax.errors import CapjaxError
from capjax.images import Preprocessing
from capjax.models import Captioner, build_decoder
from capjax.pretrained.encoder_file import (
    EncoderConfig,
    LoadedEncoder,
    cut_encoder,
    load_encoder,
    pool_grid,
)
from capjax.pretrained.random_encoder import random_encoder
from capjax.types import Features

SCENES_ENCODER = pathlib.Path(__file__).parent / "pretrained" / "scenes_encoder.safetensors"


def encoder_from(config: ConfigDict) -> LoadedEncoder | None:
    """Load the encoder that `config.encoder` names; None where features come from elsewhere.

    Raises:
        CapjaxError: if there are no such weights, or they have no such block.
    """
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
            return LoadedEncoder(architecture, random_encoder(architecture, config.seed))
        case path:
            if not pathlib.Path(path).is_file():
                raise CapjaxError(
                    f"expected encoder weights at {path}, found no file; `capjax weights fetch --out={path}` gets them "
                    "(or set --config.encoder.weights)"
                )
            return load_encoder(path)


def preprocessing_from(config: ConfigDict, encoder: LoadedEncoder) -> Preprocessing:
    """Return how images become the encoder's input."""
    return Preprocessing(encoder.config.image_size, config.encoder.crop, config.encoder.resize)


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
    model: Captioner, key: jax.Array, features: Features, encoder: LoadedEncoder | None, drawn: bool = True
) -> dict[str, Any]:
    """Draw the decoder's parameters and set the encoder's to the pretrained ones.

    Args:
        model: the captioner; `encoder` is used if it has an encoder.
        key: of the draw.
        features: of any one image [1, …], for shapes.
        encoder: the pretrained weights.
        drawn: False gives the shapes and dtypes of the decoder's parameters alone, at once.
    """
    init = jax.jit(model.init) if drawn else partial(jax.eval_shape, model.init)
    variables = init(key, features, jnp.zeros((1, 1), jnp.int32))
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
