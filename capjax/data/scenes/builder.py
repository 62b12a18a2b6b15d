"""The `scenes` source: rendered pictures of coloured shapes with five captions each, deterministic, without a download.

It exists so that a captioner can be trained end to end in minutes through the same code as for photographs; it says
nothing about photographs. `layout` draws what a picture shows, `rendering` paints it, `captions`
describes it, and `claims` tells whether a caption is right.

Splits: every combination of colour, shape and time of day that `layout.is_held_out` appears in no training or
validation picture, and each test picture shows at least one. So the test split asks for red stars by day after a
training with red stars at night and red hearts by day, but no red star by day. `scenes_pairs` is harder: six pairs of
colour and shape appear in no training picture at all, so that its test split asks for words that were never written
beside each other.
"""

import io
from collections.abc import Iterator
from random import Random
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from capjax.data.caption_builder import CaptionBuilder, SplitExamples
from capjax.data.scenes.captions import describe
from capjax.data.scenes.layout import HeldOut, Scene, sample_scene
from capjax.data.scenes.rendering import render_scene
from capjax.errors import CapjaxError
from capjax.types import CaptionRecord

NUM_PICTURES = {"train": 4000, "val": 400, "test": 400}
IMAGE_SIZE = 128
_FIRST_ID = {"train": 0, "val": 1_000_000, "test": 2_000_000}
_FIRST_PAIRS_ID = 10_000_000
"""The ids of `scenes_pairs` begin here, by split as those of `scenes`."""


class Scenes(CaptionBuilder):
    """The TFDS builder."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = (
        "Rendered pictures of one to three groups of coloured shapes, five English captions each. Test pictures show "
        "combinations of colour, shape and time of day that occur in no training picture."
    )
    first_id = 0

    def __init__(
        self,
        *,
        num_pictures: dict[str, int] | None = None,
        image_size: int = IMAGE_SIZE,
        seed: int = 0,
        **kwargs: Any,
    ):
        """Choose what to render.

        Args:
          num_pictures: pictures by split, out of train, val and test.
          image_size: side of the pictures in pixels.
          seed: another seed gives other pictures.
          **kwargs: arguments of `tfds.core.ShardBasedBuilder`.

        Raises:
          CapjaxError: a split does not exist, or holds fewer than 1 or more than a million pictures.
        """
        self._num_pictures = NUM_PICTURES if num_pictures is None else num_pictures
        for split, count in self._num_pictures.items():
            if split not in _FIRST_ID or not 1 <= count <= 1_000_000:
                raise CapjaxError(f"scenes has train, val and test of 1 to 1,000,000 pictures, got {split}: {count}")
        self._image_size, self._seed = image_size, seed
        super().__init__(**kwargs)

    def caption_splits(self) -> dict[str, SplitExamples]:
        """Render each split, picture by picture."""
        return {split: SplitExamples(n, self._render(split, n)) for split, n in self._num_pictures.items()}

    def _render(self, split: str, num_pictures: int) -> Iterator[tuple[CaptionRecord, bytes]]:
        for i in range(num_pictures):
            image_id = self.first_id + _FIRST_ID[split] + i
            scene = scene_of(image_id, self._seed)
            captions = describe(scene, _random("captions", image_id, self._seed))
            record = CaptionRecord(image_id=image_id, file_name=f"{split}-{i:06d}.jpg", captions=captions)
            yield record, encode_picture(scene, self._image_size)


class ScenesPairs(Scenes):
    """The TFDS builder of the harder variant."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = (
        "Rendered pictures of one to three groups of coloured shapes, five English captions each. Test pictures show "
        "pairs of colour and shape that occur in no training picture."
    )
    first_id = _FIRST_PAIRS_ID


def scene_of(image_id: int, seed: int = 0) -> Scene:
    """Return what the picture with this id shows; the id tells variant and split."""
    is_test = image_id % _FIRST_PAIRS_ID >= _FIRST_ID["test"]
    what: HeldOut = "pairs" if of_pairs(image_id) else "combinations"
    return sample_scene(_random("scene", image_id, seed), held_out=is_test, what=what)


def of_pairs(image_id: int) -> bool:
    """Tell whether a picture is one of `scenes_pairs`."""
    return image_id >= _FIRST_PAIRS_ID


def encode_picture(scene: Scene, image_size: int = IMAGE_SIZE) -> bytes:
    """Render a scene as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(render_scene(scene, image_size)).save(buffer, "JPEG", quality=92, subsampling="4:4:4")
    return buffer.getvalue()


def _random(purpose: str, image_id: int, seed: int) -> Random:
    return Random(f"{purpose}/{seed}/{image_id}")
