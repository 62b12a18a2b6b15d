"""A tiny run for tests: a feature store whose captions can be told from the features, and a configuration for it."""

import pathlib

import numpy as np

from capjax.config import default_config
from capjax.data.feature_store import create_store
from capjax.types import CaptionRecord, Features

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "star", "heart")
NUM_FEATURES = 8


def make_store(path: pathlib.Path, num_images: int = 24) -> None:
    """Write features that hold a colour and a shape, with two captions that name them, for train and val."""
    store = create_store(path, {"made": "for tests"}, NUM_FEATURES)
    rng = np.random.default_rng(0)
    for split, first_id in (("train", 0), ("val", 1000)):
        kinds = [(rng.integers(4), rng.integers(4)) for _ in range(num_images)]
        records = [
            CaptionRecord(
                first_id + i, f"{i}.jpg", (f"a {COLOURS[c]} {SHAPES[s]}", f"one {SHAPES[s]} that is {COLOURS[c]}")
            )
            for i, (c, s) in enumerate(kinds)
        ]
        store.begin_split(split, records)
        pooled = np.stack([np.eye(NUM_FEATURES)[[c, 4 + s]].sum(axis=0) for c, s in kinds]).astype(np.float32)
        for rows in store.missing_shards(split):
            store.write_shard(split, rows, Features(pooled[rows.start : rows.stop]))


def tiny_config(store: pathlib.Path):
    """Return a configuration that trains on `make_store` in seconds."""
    config = default_config()
    config.encoder.weights = ""
    config.features.dir = str(store)
    config.vocabulary.min_count = 1
    config.decoder.embed_size = config.decoder.hidden_size = 12
    config.decoder.image_bottleneck_size = config.decoder.logit_bottleneck_size = 12
    config.decoder.dropout_rate = 0.1
    config.optimizer.learning_rate = 0.02
    config.train.batch_size = 16
    config.train.max_tokens = 8
    config.train.num_steps = 12
    config.train.log_every = 4
    config.train.checkpoint_every = 4
    config.eval.every = 6
    config.eval.batch_size = 16
    return config


def write_config_file(path: pathlib.Path, store: pathlib.Path) -> pathlib.Path:
    """Write a configuration file for subprocesses and the command line."""
    path.write_text(
        f"from tests.training_runs import tiny_config\n\n\ndef get_config():\n    return tiny_config({str(store)!r})\n"
    )
    return path
