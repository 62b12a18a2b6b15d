"""Captions for photos: files and arrays of pixels in, sentences out, what cannot be read passed over."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from capjax.captioning.generator import Caption, Generator
from capjax.captioning.loaded_model import LoadedModel
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.images import (
    IMAGE_SUFFIXES,
    Preprocessing,
    decode_image,
    list_images,
    photo_id,
    preprocess,
    read_image_file,
)
from capjax.sharding import make_mesh, replicate

Photo = pathlib.Path | UInt8[np.ndarray, "H W 3"]


class PhotoCaptioner:
    """Captions photos with one model, or several that vote, on all devices of this process.

    A search is compiled once for each settings, and again for more photos at once than ever before.
    """

    def __init__(self, models: Sequence[LoadedModel], batch_size: int = 16) -> None:
        """Move the weights to the devices.

        Args:
            models: see `capjax.captioning.loaded_model.load_ensemble`.
            batch_size: photos captioned at once, at most; rounded up to a multiple of the devices.

        Raises:
            CapjaxError: if the models have no encoder to look at photos with.
        """
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise CapjaxError(f"expected a batch_size of at least 1, got {batch_size!r}")
        self._preprocessing = models[0].require_preprocessing("capjax evaluate scores it on such features")
        self._mesh = make_mesh()
        self._most, self._size = -(-batch_size // self._mesh.size) * self._mesh.size, self._mesh.size
        self._generator = Generator([m.captioner for m in models], models[0].vocabulary, self._mesh)
        self._variables = replicate([m.variables for m in models], self._mesh)

    def __call__(self, photos: Sequence[Photo], settings: DecoderSettings) -> Iterator[Caption | CapjaxError]:
        """Caption photos.

        Args:
            photos: files, or RGB pixels.
            settings: of the search.

        Yields:
            For each photo in turn its caption, or why it could not be read.
        """
        # Fewer photos are filled up to the shape that there is a program for.
        size = max(self._size, min(self._most, -(-len(photos) // self._mesh.size) * self._mesh.size))
        self._size = size
        for start in range(0, len(photos), size):
            read = read_photos(photos[start : start + size], self._preprocessing)
            batches = [photo_batch(read, size, self._preprocessing)] if read.images else []
            captions = self._generator(self._variables, batches, settings)
            for error in read.errors:
                yield error or next(captions)


def find_photos(paths: Sequence[str]) -> list[pathlib.Path]:
    """List the files named, and the images in the folders named, in order.

    Raises:
        CapjaxError: if that is nothing, or a name is empty.
    """
    if "" in paths:
        raise CapjaxError("expected names of files or folders, got an empty one; . is the folder that you are in")
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        found += list_images(path) if path.is_dir() else [path]
    if not found:
        raise CapjaxError(f"expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(paths)}, found none")
    return found


class Photos(NamedTuple):
    """Photos read for captioning.

    Attributes:
        images: those that could be read, preprocessed.
        ids: an id for each image, from the content of its file.
        errors: for every photo, why it could not be read, or None.
    """

    images: list[UInt8[np.ndarray, "S S 3"]]
    ids: list[int]
    errors: list[CapjaxError | None]


def read_photos(photos: Sequence[Photo], preprocessing: Preprocessing) -> Photos:
    """Read what can be read of some photos."""
    read = Photos([], [], [])
    for photo in photos:
        error = None
        try:
            if isinstance(photo, np.ndarray):
                content, pixels = photo.tobytes(), photo
            else:
                content = read_image_file(photo)
                pixels = decode_image(content)
            read.images.append(preprocess(pixels, preprocessing))
            read.ids.append(photo_id(content))
        except CapjaxError as failure:
            error = failure
        read.errors.append(error)
    return read


def photo_batch(photos: Photos, batch_size: int, preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """Make a batch of the images that were read, filled up to `batch_size` with black ones that are not valid."""
    padding = batch_size - len(photos.images)
    black = np.zeros((preprocessing.image_size, preprocessing.image_size, 3), np.uint8)
    return {
        "image": np.stack([*photos.images, *padding * [black]]),
        "image_id": np.asarray(photos.ids + padding * [0], np.int64),
        "valid": np.arange(batch_size) < len(photos.images),
    }
