"""A split as models see it, and captioned: what an evaluation begins with."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from capjax import split_rows
from capjax.captioning.generator import Caption, Generator
from capjax.captioning.loaded_model import LoadedModel
from capjax.data import feature_store
from capjax.data.input_pipeline import ImageRows, Rows, image_batches
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.sharding import make_mesh, replicate
from capjax.types import CaptionRecord


@dataclasses.dataclass(frozen=True)
class SeenSplit:
    """A split as models see it.

    Attributes:
        models: one, or an ensemble.
        config: of the first, with the dataset and the features that were opened.
        name: of the split.
        records: what is known of its images.
        rows: its images or features, in the same order.
    """

    models: Sequence[LoadedModel]
    config: ConfigDict
    name: str
    records: Sequence[CaptionRecord]
    rows: Rows

    @property
    def title(self) -> str:
        """What it is called on pages."""
        return f"{self.config.dataset.name}, {self.name}"


def open_as_seen(
    models: Sequence[LoadedModel], config: ConfigDict, split: str, *, other_features: bool, max_images: int
) -> SeenSplit:
    """Open a split as the models see it: cached features if their own encoders made them, or else the images.

    Args:
        models: one, or an ensemble.
        config: of the first, with the dataset and the features to use.
        split: its name.
        other_features: the user names other features than the models were trained on.
        max_images: the first so many, 0 for all.

    Raises:
        CapjaxError: if something is missing, or was made with another encoder.
    """
    config, encoder = config.copy_and_resolve_references().unlock(), models[0].encoder
    if encoder and config.features.dir and not other_features and not _is_store(config.features.dir):
        print(f"the features in {config.features.dir} are not here: looking at the images", file=sys.stderr)
        config.features.dir = ""
    if config.features.dir:
        own = split_rows.encoder_key(models[0].config, encoder)
        strange = [m for m in models if split_rows.encoder_key(m.config, m.encoder) != own]
        if strange:
            raise CapjaxError(
                f"the features in {config.features.dir} cannot serve all models, {strange[0].path} sees with another "
                "encoder; --features_dir= lets each look at the images with its own"
            )
        if encoder is None:
            _check_trained_on(models, config.features.dir, other_features)
    # A decoder that needs no grid passes over it.
    config.encoder.grid = any(model.config.encoder.grid for model in models)
    records, rows = split_rows.open_split(config, split, encoder)
    for model in models:
        _check_features_fit(model, rows, config)
    return SeenSplit(models, config.lock(), split, records[: max_images or None], rows)


def _is_store(path: str) -> bool:
    return (pathlib.Path(path) / "store.json").exists()


def _check_trained_on(models: Sequence[LoadedModel], path: str, other_features: bool) -> None:
    """Compare features that another program made with those that the models were trained on.

    The user may name others, of another dataset above all; those of the same dataset may come from another program.
    """
    found = feature_store.open_store(path, {}).key
    for model in models:
        if model.features is None or model.features == found:
            continue
        if not other_features:
            raise CapjaxError(
                f"expected the features that the model {model.path} was trained on in {path}, it holds others; "
                "--features_dir=DIR names the right ones, or these all the same"
            )
        if model.features["dataset"] == found.get("dataset"):
            print(
                f"warning: {path} holds other features of {found['dataset']} than the model {model.path} was trained "
                "on; captions make sense only if the same program made both",
                file=sys.stderr,
            )


def _check_features_fit(model: LoadedModel, rows: Rows, config: ConfigDict) -> None:
    """Refuse features of another shape than the model takes; images fit every encoder."""
    if isinstance(rows, ImageRows):
        if model.encoder is None:
            raise CapjaxError(f"the model {model.path} has no encoder to look at images with; name its --features_dir")
        return
    features = split_rows.first_features(rows, None, config.encoder.grid)
    try:
        jax.eval_shape(lambda: model.captioner.apply(model.variables, features, method="start"))
    except flax.errors.ScopeParamShapeError:
        raise CapjaxError(
            f"the features in {config.features.dir} have {features.pooled.shape[-1]} numbers an image, "
            f"the model {model.path} was trained on another number"
        ) from None


def decode_split(split: SeenSplit, settings: DecoderSettings, batch_size: int) -> tuple[list[Caption], float]:
    """Caption every image of a split exactly once, on all devices of all processes.

    Args:
        split: the split, and the models.
        settings: of the search.
        batch_size: images at once on each device: programs of one shape, and so captions and log-probabilities that
            are the same to the last digit on any number of devices and processes.

    Returns:
        One caption per record, in order, on every process; and the seconds it took, compilation excluded.
    """
    mesh = make_mesh()
    generator = Generator([model.captioner for model in split.models], split.models[0].vocabulary, mesh)
    variables = replicate([model.variables for model in split.models], mesh)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def batches() -> Iterator[Mapping[str, Any]]:
        return image_batches(split.records, split.rows, batch_size=batch_size * mesh.size, **processes)

    list(generator(variables, [next(batches())], settings))  # compiles, so that what follows can be timed
    start = time.perf_counter()
    progress = tqdm(total=len(split.records), desc="captioning", unit="image", disable=None)
    captions = []
    for caption in generator(variables, batches(), settings):
        captions.append(caption)
        progress.update()
    progress.close()
    return captions, time.perf_counter() - start
