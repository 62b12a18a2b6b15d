"""From a configuration to the rows of a split: its captions, and its cached features or its images."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from capjax import data
from capjax.assembly import preprocessing_from
from capjax.data import feature_store
from capjax.data.caption_records import CaptionRecords
from capjax.data.input_pipeline import ImageRows, Rows
from capjax.errors import CapjaxError
from capjax.pretrained.encoder_file import LoadedEncoder
from capjax.types import CaptionRecord, Features


def dataset_of(config: ConfigDict) -> data.CaptionDataset:
    """Open the dataset that a configuration names.

    Raises:
        CapjaxError: if it is not prepared.
    """
    return data.load(config.dataset.name, config.dataset.data_dir)


def encoder_key(config: ConfigDict, encoder: LoadedEncoder | None) -> dict[str, Any]:
    """Return what makes the features of an image what they are, but for the precision that they are computed in.

    Args:
        config: says how images are seen.
        encoder: None where features come from another program; then nothing is known of it.
    """
    if encoder is None:
        return {}
    architecture = dataclasses.asdict(encoder.config)
    del architecture["source"], architecture["num_classes"]
    if not architecture["grid_side"]:  # as stores say that are older than this field
        del architecture["grid_side"]
    return {
        "encoder": architecture,
        "weights_sha256": encoder.sha256,
        "preprocessing": preprocessing_from(config, encoder).to_dict(),
    }


def feature_key(config: ConfigDict, encoder: LoadedEncoder | None) -> dict[str, Any]:
    """Return what cached features depend on, as far as it follows from a configuration; arguments of `encoder_key`."""
    seen = {"dataset": config.dataset.name, **encoder_key(config, encoder)}
    return seen | {"compute_dtype": config.encoder.dtype} if encoder else seen


def open_features(config: ConfigDict, encoder: LoadedEncoder | None) -> feature_store.FeatureStore:
    """Open the feature store of a configuration.

    Raises:
        CapjaxError: if there is none, or it was made with another encoder or of another dataset.
    """
    return feature_store.open_store(config.features.dir, feature_key(config, encoder))


def _check_not_empty(records: CaptionRecords, split: str) -> None:
    if not len(records):
        raise CapjaxError(f"expected images in split {split!r}, it is empty")


def open_split(
    config: ConfigDict, split: str, encoder: LoadedEncoder | None, dtype: str = "float32"
) -> tuple[CaptionRecords, Rows]:
    """Open a split: its captions, and its cached features, of a dtype, or its images.

    Where the dataset lies beside its features, they are compared: features of images that have changed are refused.

    Raises:
        CapjaxError: if something is missing or empty, or does not fit the other.
    """
    if not config.features.dir:
        if encoder is None:
            raise CapjaxError("expected features.dir or encoder.weights to be set: there is nothing to see images with")
        dataset = dataset_of(config)
        records = dataset.records(split)
        _check_not_empty(records, split)
        return records, ImageRows(dataset.images(split), preprocessing_from(config, encoder))
    store = open_features(config, encoder)
    records = store.records(split)
    _check_not_empty(records, split)
    rows = store.features(split, config.encoder.grid, jnp.dtype(dtype))
    if data.is_prepared(config.dataset.name, config.dataset.data_dir):
        dataset = dataset_of(config)
        of_dataset = dataset.records(split)
        if encoder is None:  # another program may have left out images
            if not records.same_as(of_dataset):
                of_dataset = of_dataset.of_images({record.image_id for record in records})
            store.check_split(split, of_dataset)
        else:
            store.check_split(split, of_dataset, dataset.images_sha256(split))
    return records, rows


def images_sha256(config: ConfigDict, split: str, encoder: LoadedEncoder | None) -> str:
    """Give what identifies the images of a split that a run sees, themselves or in features; "" if it is not known.

    Raises:
        CapjaxError: if there is no such split, or something is damaged.
    """
    if config.features.dir:
        return open_features(config, encoder).images_sha256(split)
    return dataset_of(config).known_images_sha256(split)


def pictures(config: ConfigDict, split: str) -> Callable[[CaptionRecord], bytes | None]:
    """Return what reads the photo of a record, as it is encoded; it gives None where photos are not on this machine."""
    try:
        dataset = dataset_of(config)
        images = dataset.images(split)
        index = {record.image_id: i for i, record in enumerate(dataset.records(split))}
    except CapjaxError:
        return lambda record: None
    return lambda record: images[index[record.image_id]] if record.image_id in index else None


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
