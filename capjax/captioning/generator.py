"""Captions for batches of images or features: one compiled search for each settings and shape, on all devices."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int64, UInt8, UInt32

from capjax.decoding.beam_search import Watch
from capjax.decoding.ensemble import ensemble
from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.sampling import keys_of_images
from capjax.decoding.settings import DecoderSettings, build_search
from capjax.errors import CapjaxError
from capjax.models import Captioner, begin_search
from capjax.sharding import DATA_AXIS, gather_rows, local_rows, one_ahead, replicate, shard_batch
from capjax.text.vocabulary import Vocabulary
from capjax.types import SPECIAL_IDS, Features


class Caption(NamedTuple):
    """A generated sentence.

    Attributes:
        image_id: of the image.
        text: what is shown of it.
        log_prob: the natural logarithm, summed over its tokens.
        alternatives: that are ranked below, each with its own.
        tokens: the ids of its words, END the last unless the search ended first; `text` says less where one is UNK.
    """

    image_id: int
    text: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...] = ()
    tokens: tuple[int, ...] = ()


def caption_of(
    image_id: int, tokens: Int[np.ndarray, "K L"], log_probs: Float[np.ndarray, " K"], vocabulary: Vocabulary
) -> Caption:
    """Put what a search found for an image into words; a search that found nothing gives an empty caption."""
    ranked = [
        (vocabulary.decode(row), float(score)) for row, score in zip(tokens, log_probs, strict=True) if score > -np.inf
    ]
    best = ranked[0] if ranked else ("", float("-inf"))
    return Caption(image_id, *best, tuple(ranked[1:]), tuple(tokens[0][tokens[0] != SPECIAL_IDS.pad].tolist()))


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
    watch: Watch | None = None,
) -> Callable[..., Hypotheses]:
    """Build the function, to be compiled, that searches for captions of images or their features.

    Args:
        models: one captioner, or several that are averaged (an ensemble); all share the vocabulary.
        vocabulary: of its words.
        settings: of the search, but for its seed.
        watch: see `capjax.decoding.beam_search`.

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
