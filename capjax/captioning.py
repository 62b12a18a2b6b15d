"""Captions for images: models restored from their directories, photos read, sentences generated."""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int64, UInt8, UInt32
from ml_collections import ConfigDict

from capjax import assembly
from capjax import config as configuration
from capjax.decoding.beam_search import Selector
from capjax.decoding.ensemble import ensemble
from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.sampling import keys_of_images
from capjax.decoding.settings import DecoderSettings, build_search
from capjax.errors import CapjaxError, first_line
from capjax.hub import is_remote, model_folder
from capjax.images import Preprocessing
from capjax.model_directory import load_model_directory
from capjax.models import Captioner, begin_search
from capjax.models.inception_v3 import min_image_size
from capjax.pretrained.encoder_file import (
    EncoderConfig,
    LoadedEncoder,
    check_shapes,
    config_from,
    flatten,
)
from capjax.sharding import DATA_AXIS, gather_rows, local_rows, one_ahead, replicate, shard_batch
from capjax.text.vocabulary import Vocabulary
from capjax.types import SPECIAL_IDS, Features


class Caption(NamedTuple):
    """A generated sentence.

    `log_prob` is the natural logarithm, summed over its words and END; `alternatives` are ranked below.
    """

    image_id: int
    text: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...] = ()


def caption_of(
    image_id: int, tokens: Int[np.ndarray, "K L"], log_probs: Float[np.ndarray, " K"], vocabulary: Vocabulary
) -> Caption:
    """Put what a search found for an image into words; a search that found nothing gives an empty caption."""
    ranked = [
        (vocabulary.decode(row), float(score)) for row, score in zip(tokens, log_probs, strict=True) if score > -np.inf
    ]
    best = ranked[0] if ranked else ("", float("-inf"))
    return Caption(image_id, *best, tuple(ranked[1:]))


class Generator:
    """Turns batches of images or features into captions, on all devices of a mesh.

    A search is compiled once for each settings and shape of batch; the programs used last are kept.
    """

    def __init__(self, models: Sequence[Captioner], vocabulary: Vocabulary, mesh: Mesh, max_programs: int = 8) -> None:
        """Prepare to decode.

        Args:
            models: one captioner, or several that are averaged (an ensemble); all share the vocabulary.
            vocabulary: turns ids into words.
            mesh: the devices that batches are divided over.
            max_programs: compiled searches that are kept.
        """
        self._models, self._vocabulary, self._mesh = tuple(models), vocabulary, mesh
        self._program = functools.lru_cache(max_programs)(self._build)

    def __call__(
        self,
        variables: Sequence[Mapping[str, Any]],
        batches: Iterable[Mapping[str, Any]],
        settings: DecoderSettings,
    ) -> Iterator[Caption]:
        """Caption every valid image of this run's batches, on all processes alike.

        Args:
            variables: of each model.
            batches: this process's parts, see `capjax.data.input_pipeline.image_batches`.
            settings: of the search.

        Yields:
            One caption per image, in the order of the global batches.

        Raises:
            CapjaxError: if the settings name words that the vocabulary lacks.
        """

        def begin(batch: Mapping[str, Any]) -> Iterator[Caption]:
            visual = shard_batch(batch["features"] if "features" in batch else batch["image"], self._mesh)
            return self.caption(variables, visual, batch["image_id"], batch["valid"], settings)

        for captions in one_ahead(map(begin, batches)):
            yield from captions

    def caption(
        self,
        variables: Sequence[Mapping[str, Any]],
        visual: Float[Array, "N H W C"] | UInt8[Array, "N H W C"] | Features,
        image_ids: Int64[np.ndarray, " n"],
        valid: Bool[np.ndarray, " n"],
        settings: DecoderSettings,
    ) -> Iterator[Caption]:
        """Caption the valid images of one batch that lies on the devices; `image_ids`, `valid`: this process's part.

        The search is begun at once, and waited for when the first caption is asked for.
        """
        seed, ids = np.uint32(settings.seed), image_ids.astype(np.uint32)
        shapes = tuple(x.shape for x in jax.tree.leaves(visual))
        program = self._program(without_seed(settings), shapes)
        found = program(variables, visual, replicate(seed, self._mesh), shard_batch(ids, self._mesh))
        return self._captions(found, image_ids, valid)

    def _captions(self, found: Hypotheses, image_ids: np.ndarray, valid: np.ndarray) -> Iterator[Caption]:
        tokens, log_probs, ids, valid = gather_rows(
            [local_rows(found.tokens), local_rows(found.log_probs), image_ids, valid]
        )
        for image_id, rows, scores in zip(ids[valid], tokens[valid], log_probs[valid], strict=True):
            yield caption_of(int(image_id), rows, scores, self._vocabulary)

    def _build(self, settings: DecoderSettings, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """Make the program of one search; `shapes` only tells the programs apart that are kept."""
        del shapes
        find = search_function(self._models, self._vocabulary, settings)
        # Each device searches for the captions of its own images: no communication, and an end of its own.
        whole, split = PartitionSpec(), PartitionSpec(DATA_AXIS)
        specs = (whole, split, whole, split)
        return jax.jit(jax.shard_map(find, mesh=self._mesh, in_specs=specs, out_specs=split, check_vma=False))


def search_function(
    models: Sequence[Captioner],
    vocabulary: Vocabulary,
    settings: DecoderSettings,
    watch: Callable[[Selector], Selector] = lambda selector: selector,
) -> Callable[..., Hypotheses]:
    """Build the function, to be compiled, that searches for captions of images or their features.

    Args:
        models: one captioner, or several that are averaged (an ensemble); all share the vocabulary.
        vocabulary: of its words.
        settings: of the search, but for its seed.
        watch: see `capjax.decoding.settings.build_search`.

    Returns:
        A function of the variables of each model, N images, a seed, and the lowest 32 bits of the images' ids.

    Raises:
        CapjaxError: if the settings name words that the vocabulary lacks, or a decoder was built for shorter captions.
    """
    for model in models:
        check_length(model, settings)
    search = build_search(settings.with_token_ids(vocabulary.ids, vocabulary.unused_ids), SPECIAL_IDS, watch=watch)

    def find(
        variables: Sequence[Mapping[str, Any]],
        visual: UInt8[Array, "N H W C"] | Features,
        seed: int | UInt32[Array, ""],
        ids: UInt32[Array, " N"],
    ) -> Hypotheses:
        begun = [begin_search(m, v, visual, settings.max_length) for m, v in zip(models, variables, strict=True)]
        steps, carries = zip(*begun, strict=True)
        step, carry = (steps[0], carries[0]) if len(steps) == 1 else (ensemble(steps), carries)
        return search(step, carry, keys_of_images(seed, ids))

    return find


def without_seed(settings: DecoderSettings) -> DecoderSettings:
    """Return what a compiled search depends on: the seed is data."""
    return replace(settings, seed=DecoderSettings.seed)


def check_length(model: Captioner, settings: DecoderSettings) -> None:
    """Check that a decoder can write captions as long as a search may ask for.

    Raises:
        CapjaxError: if it was built for shorter ones.
    """
    if model.max_length is not None and settings.max_length > model.max_length:
        raise CapjaxError(
            f"expected a search for at most {model.max_length} words, for which the decoder was built, "
            f"got max_length {settings.max_length}"
        )


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
        return pathlib.Path() if self.is_remote else pathlib.Path(self.path).parent

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
