"""The compiled programs of a server: the encoder for every size of batch, and the searches that were asked for last."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import UInt8

from capjax.captioning.generator import Caption, Generator, without_seed
from capjax.captioning.loaded_model import LoadedModel
from capjax.decoding.settings import DecoderSettings
from capjax.serving.searches import SearchRules
from capjax.sharding import DATA_AXIS, replicate, shard_batch
from capjax.types import Features


class Programs:
    """Captions batches of few sizes, which are filled up with black images, by searches that are compiled beforehand.

    The encoder, which takes longest to compile, is apart from the searches. The server's own search is compiled for
    every size and kept; any other for one size, and the ones asked for last are kept. The images of a larger batch go
    through it bit by bit.
    """

    def __init__(self, model: LoadedModel, rules: SearchRules, sizes: Sequence[int], others: int, mesh: Mesh) -> None:
        """Move the weights to the devices; nothing is compiled yet.

        Args:
            model: with an encoder.
            rules: which name the server's own search.
            sizes: of batches, ascending; rounded up to multiples of the devices.
            others: searches that are kept beside the server's own.
            mesh: the devices that batches are divided over.
        """
        self._model, self._mesh, self._others = model, mesh, others
        self._sizes = sorted({-(-size // mesh.size) * mesh.size for size in sizes})
        self._own = without_seed(rules.default)
        self._size_of_others = self._sizes[min(1, len(self._sizes) - 1)]
        self._searches: OrderedDict[DecoderSettings, Generator] = OrderedDict()
        self._lock = threading.Lock()
        self._variables = replicate([model.variables], mesh)
        split = PartitionSpec(DATA_AXIS)
        self._encode = jax.jit(
            jax.shard_map(
                lambda variables, images: model.captioner.apply(variables, images, method="encode"),
                mesh=mesh,
                in_specs=(PartitionSpec(), split),
                out_specs=split,
                check_vma=False,
            )
        )

    @property
    def max_batch(self) -> int:
        """Images that are captioned at once, at most."""
        return self._sizes[-1]

    def find(self, settings: DecoderSettings) -> Generator | None:
        """Return the search if it is compiled."""
        key = without_seed(settings)
        with self._lock:
            if key in self._searches:
                self._searches.move_to_end(key)
            return self._searches.get(key)

    def prepare(self, settings: DecoderSettings) -> None:
        """Compile a search, and the encoder with the server's own; another search that was not used lately goes."""
        key = without_seed(settings)
        generator = Generator([self._model.captioner], self._model.vocabulary, self._mesh)
        side = self._model.preprocessing.image_size
        for size in self._sizes if key == self._own else [self._size_of_others]:
            self.caption(generator, np.zeros((size, side, side, 3), np.uint8), np.zeros(size, np.int64), settings)
        with self._lock:
            self._searches[key] = generator
            unused = [settings for settings in self._searches if settings != self._own][: -self._others]
            for settings in unused:
                del self._searches[settings]

    def caption(
        self,
        generator: Generator,
        images: UInt8[np.ndarray, "N S S 3"],
        image_ids: np.ndarray,
        settings: DecoderSettings,
    ) -> list[Caption]:
        """Caption images.

        Args:
            generator: of `find`.
            images: preprocessed, `max_batch` at most.
            image_ids: an id of each, int64 [N].
            settings: those that the generator was found for.

        Returns:
            A caption of each image, in order.
        """
        size = next(size for size in self._sizes if size >= len(images))
        features = self._encode(self._variables[0], shard_batch(_filled(images, size), self._mesh))
        if without_seed(settings) == self._own:
            return self._search(generator, features, image_ids, size, settings)
        features = jax.tree.map(lambda x: np.asarray(x)[: len(images)], features)
        captions: list[Caption] = []
        for start in range(0, len(images), self._size_of_others):
            part = slice(start, start + self._size_of_others)
            few = jax.tree.map(lambda x: _filled(x[part], self._size_of_others), features)  # noqa: B023
            few = shard_batch(few, self._mesh)
            captions += self._search(generator, few, image_ids[part], self._size_of_others, settings)
        return captions

    def _search(
        self, generator: Generator, features: Features, image_ids: np.ndarray, size: int, settings: DecoderSettings
    ) -> list[Caption]:
        valid = np.arange(size) < len(image_ids)
        return list(generator.caption(self._variables, features, _filled(image_ids, size), valid, settings))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Fill up with zeros."""
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
