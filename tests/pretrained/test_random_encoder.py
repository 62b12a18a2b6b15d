"""Random encoders: reproducible, random everywhere, and alive down to the last block."""

import numpy as np
import pytest

from capjax.pretrained import encoder_file
from capjax.pretrained.random_encoder import random_encoder, random_images
from capjax.pretrained.side_by_side import capjax_blocks

CONFIG = encoder_file.EncoderConfig(convention="torchvision", depth_multiplier=0.25, final_endpoint="mixed4")


def test_equal_seeds_give_equal_weights():
    first, again, other = (encoder_file.flatten(random_encoder(CONFIG, seed)) for seed in (1, 1, 2))
    for name, shape in encoder_file.variable_shapes(CONFIG).items():
        assert first[name].shape == shape and first[name].dtype == np.float32
        assert first[name].std() > 0.01, name
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


@pytest.mark.parametrize("convention", ["keras", "torchvision"])
def test_activations_keep_their_size_and_their_image(convention):
    config = encoder_file.EncoderConfig(convention=convention, depth_multiplier=0.25, final_endpoint="mixed4")
    images = np.float32(random_images(2, 75, seed=0)) / 127.5 - 1
    for name, block in capjax_blocks(config, random_encoder(config, seed=0), images).items():
        assert 0.2 < block.std() < 3, name
        assert 0.3 < (block > 0).mean() < 0.8, name
        assert np.corrcoef(block.reshape(2, -1))[0, 1] < 0.98, name


def test_images_are_reproducible_and_smooth():
    images = random_images(2, 64, seed=4)
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, random_images(2, 64, seed=4))
    assert 40 < images.std() < 60
    assert np.abs(np.diff(np.float32(images), axis=1)).mean() < 0.6 * images.std()
