"""Model directories with random weights, which need no training: small ones of every decoder."""

import dataclasses
import pathlib

import jax
import numpy as np

from capjax import assembly
from capjax.config import load_config, to_dict
from capjax.model_directory import ModelDirectory, save_model
from capjax.pretrained.encoder_file import EncoderConfig
from capjax.pretrained.random_encoder import random_encoder
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from capjax.types import Features

SIZES = {"embed_size": 8, "hidden_size": 8, "attention_size": 4, "image_bottleneck_size": 4, "num_heads": 2}


def small_model(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Write a model with a small random encoder and a random decoder of that name."""
    encoder = EncoderConfig(depth_multiplier=0.25, final_endpoint="mixed0", image_size=75, source="random")
    config = load_config("reference", ["features.dir=x", f"decoder.name={name}"])
    config.decoder.update({field: size for field, size in SIZES.items() if field in config.decoder})
    vocabulary = Vocabulary([*SPECIAL_WORDS, *(f"w{i}" for i in range(300))], "words")
    captioner = assembly.captioner_from(config, len(vocabulary), encoder)
    inputs = np.zeros((1, 75, 75, 3), np.uint8), np.zeros((1, 1), np.int32)
    decoder = jax.eval_shape(captioner.init, jax.random.key(0), *inputs)["params"]["decoder"]
    rng = np.random.default_rng(0)
    decoder = jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(np.float32), decoder)
    variables = random_encoder(encoder, seed=0)
    variables = {part: {"encoder": tree} for part, tree in variables.items()}
    variables["params"]["decoder"] = decoder
    save_model(folder, ModelDirectory(to_dict(config), dataclasses.asdict(encoder), vocabulary, variables, {}))
    return folder


def model_of_features(folder: pathlib.Path) -> pathlib.Path:
    """Write a model that was trained on features made elsewhere and cannot see."""
    config = load_config("reference", ["features.dir=x", "encoder.weights="])
    vocabulary = Vocabulary([*SPECIAL_WORDS, "dog"], "words")
    captioner = assembly.captioner_from(config, len(vocabulary), None)
    features = Features(np.zeros((1, 7), np.float32), None)
    shapes = jax.eval_shape(captioner.init, jax.random.key(0), features, np.zeros((1, 1), np.int32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_model(folder, ModelDirectory(to_dict(config), None, vocabulary, variables, {}))
    return folder
