"""Model directories turned into something that captions."""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from capjax import assembly
from capjax import config as configuration
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError, first_line
from capjax.host.disk import finite_or_none
from capjax.hub import is_remote, model_folder
from capjax.images import Preprocessing
from capjax.model_directory import load_model_directory
from capjax.models import Captioner
from capjax.models.inception_v3 import min_image_size
from capjax.pretrained.encoder_file import EncoderConfig, LoadedEncoder, check_shapes, config_from, flatten
from capjax.text.vocabulary import Vocabulary
from capjax.types import Features


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model directory turned into something that captions.

    Attributes:
        path: of the directory.
        is_remote: whether that is a copy of what the hub has.
        captioner: the model.
        variables: its weights, NumPy arrays.
        vocabulary: of its captions.
        config: of the run that trained it.
        encoder: the encoder it sees with, its weights those of `variables`; None if it was trained on features made
            elsewhere.
        features: the key of the feature store it was trained on, None if it was trained on images.
        scores: of the validation that chose it, and its `step`.
        weights_sha256: what identifies the weights among all models.
    """

    path: str
    is_remote: bool
    captioner: Captioner
    variables: dict[str, Any]
    vocabulary: Vocabulary
    config: ConfigDict
    encoder: LoadedEncoder | None
    features: dict[str, Any] | None
    scores: dict[str, float]
    weights_sha256: str

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How it wants to see images; None if it cannot."""
        return self.encoder and assembly.preprocessing_from(self.config, self.encoder)

    def require_preprocessing(self, instead: str) -> Preprocessing:
        """Return `preprocessing`.

        Args:
            instead: what to do with a model that has none.

        Raises:
            CapjaxError: if this one has none.
        """
        if self.preprocessing is None:
            raise CapjaxError(
                f"the model {self.path} was trained on features made elsewhere and has no encoder to look at photos "
                f"with; {instead}"
            )
        return self.preprocessing

    @property
    def workdir(self) -> pathlib.Path:
        """The folder that the directory lies in, with what else is known of it; the present one for a remote model."""
        return pathlib.Path() if self.is_remote else self._beside

    @property
    def training_log(self) -> pathlib.Path:
        """The log of its training, which need not be there."""
        return self._beside / "metrics.jsonl"

    @property
    def _beside(self) -> pathlib.Path:
        path = pathlib.Path(self.path)
        return (path if path.name not in ("", "..") else path.resolve()).parent

    @property
    def summary(self) -> dict[str, Any]:
        """Its recipe and its `scores` as JSON values, null in place of what is no number."""
        return {
            "recipe": self.config.recipe,
            "scores": {name: finite_or_none(score) for name, score in self.scores.items()},
        }

    @property
    def search(self) -> DecoderSettings:
        """The search that it was configured with."""
        return DecoderSettings.from_dict(self.config.search.to_dict())


def load_model(path: str) -> LoadedModel:
    """Restore a model directory.

    Args:
        path: of the directory, or where the hub has it, see `capjax.hub`.

    Raises:
        CapjaxError: if it is none, is damaged, or is of another version.
    """
    folder = model_folder(path)
    directory = load_model_directory(folder)
    config = configuration.from_dict(directory.config, f"{path}/model.json")
    encoder = None
    if directory.encoder is not None:
        try:
            architecture = config_from(directory.encoder)
            weights = {part: directory.variables[part]["encoder"] for part in ("params", "batch_stats")}
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise CapjaxError(f"expected an encoder that capjax knows in {path}/model.json, got {error}") from None
        encoder = LoadedEncoder(architecture, weights)
    found = {name: leaf.shape for name, leaf in flatten(directory.variables).items()}
    if (num_layers := config.decoder.get("num_layers", 0)) > len(found):  # which would take for ever to build
        raise CapjaxError(
            f"expected decoder.num_layers in {path}/model.json to be that of the weights, which are {len(found)} "
            f"arrays, got {num_layers}"
        )
    try:
        captioner = assembly.captioner_from(config, len(directory.vocabulary), encoder and encoder.config)
        expected = _variable_shapes(captioner, encoder and encoder.config, found)
    except CapjaxError:
        raise
    except Exception as error:  # whatever Flax and JAX raise on sizes and names that make no model
        raise CapjaxError(f"expected a model in {path}/model.json, could not build it ({first_line(error)})") from None
    check_shapes(found, expected, f"the weights of {path} with its model.json")
    return LoadedModel(
        str(folder),
        is_remote(path),
        captioner,
        directory.variables,
        directory.vocabulary,
        config,
        encoder,
        directory.features,
        directory.scores,
        directory.weights_sha256,
    )


def _variable_shapes(
    captioner: Captioner, encoder: EncoderConfig | None, found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the variables of a captioner should have, by flat name, without computing anything.

    Without an encoder, how many numbers the features had is read off the shapes `found`.
    """
    if encoder is not None:
        size = min_image_size(encoder.final_endpoint)  # of an image whose grid is too small to be made smaller
        captioner = captioner.clone(encoder=captioner.encoder.clone(grid_side=0))
        shapes = _shapes(captioner, np.zeros((1, size, size, 3), np.uint8))
        # A classification top that came with the encoder is kept, and not used.
        return shapes | {name: found[name] for name in found if name.split("/")[1:3] == ["encoder", "classifier"]}
    one, two = (_shapes(captioner, _features(size)) for size in (1, 2))
    sizes = (
        1 + (n - a) // (b - a)
        for name in one
        for a, b, n in zip(one[name], two[name], found.get(name, ()), strict=False)
        if a != b
    )
    return _shapes(captioner, _features(max(1, next(sizes, 1))))


def _shapes(captioner: Captioner, inputs: np.ndarray | Features) -> dict[str, tuple[int, ...]]:
    variables = jax.eval_shape(captioner.init, jax.random.key(0), inputs, np.zeros((1, 1), np.int32))
    return {name: leaf.shape for name, leaf in flatten(variables).items()}


def _features(size: int) -> Features:
    return Features(np.zeros((1, size), np.float32), np.zeros((1, 1, size), np.float32))


def load_ensemble(paths: str) -> list[LoadedModel]:
    """Restore the comma-separated model directories of an ensemble.

    Raises:
        CapjaxError: if one cannot be restored, or as `check_ensemble`.
    """
    models = [load_model(path) for path in paths.split(",")]
    check_ensemble(models)
    return models


def check_ensemble(models: Sequence[LoadedModel]) -> None:
    """Check that models can vote.

    Raises:
        CapjaxError: if they do not speak the same words or see images alike.
    """
    for model in models:
        if model.vocabulary.words != models[0].vocabulary.words:
            raise CapjaxError(f"expected models with one vocabulary for an ensemble, {model.path} has another")
        if model.preprocessing != models[0].preprocessing:
            raise CapjaxError(
                f"expected models that see images alike for an ensemble, {model.path} preprocesses differently"
            )
