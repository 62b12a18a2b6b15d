"""Inception V3 against Keras' own network and a PyTorch one with torchvision's conventions, and its own contract."""

import dataclasses
import pathlib
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # the PyTorch network lies beside this file
from capjax.errors import CapjaxError
from capjax.models import inception_v3
from capjax.pretrained import encoder_file, inception_map, keras_h5, torchvision
from capjax.pretrained.random_encoder import random_encoder, random_images
from capjax.pretrained.side_by_side import capjax_blocks, relative_rms

TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch


@pytest.fixture(params=["noise", "photos"])
def images(request):
    """Return a function from size to two square uint8 images: generated ones, or photographs where there are any."""
    if request.param == "noise":
        return lambda size: random_images(2, size, seed=3)
    folder = request.getfixturevalue("real_data") / "coco-mini" / "val2017"
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))[:2]]
    return lambda size: np.stack([np.asarray(photo.resize((size, size))) for photo in photos])


def random_tensor(rng, name, shape):
    """Draw a tensor by its role in either framework; kernels may come as HWIO or OIHW, scaled by what they sum over."""
    if len(shape) > 1:
        fan_in = int(np.prod(shape)) // max(shape[0], shape[-1])
        return (rng.standard_normal(shape) / np.sqrt(0.4 * fan_in)).astype(np.float32)
    if any(part in name for part in ("var", "gamma", "bn.weight")):
        return rng.uniform(0.6, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.2, shape).astype(np.float32)


@pytest.fixture(scope="module")
def keras_network(tmp_path_factory):
    """Return Keras' network with its top, all its weights random, and a legacy .h5 file of them that Keras wrote."""
    keras = pytest.importorskip("keras")
    from keras.src.legacy.saving import legacy_h5_format

    model = keras.applications.InceptionV3(weights=None, classifier_activation=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([random_tensor(rng, weight.path, weight.shape) for weight in layer.weights])
    path = tmp_path_factory.mktemp("keras") / "inception.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    grid = model.get_layer("mixed10").output
    return keras.Model(model.input, [grid, model.get_layer("avg_pool").output, model.output]), path


@pytest.fixture(scope="module")
def converted_network(keras_network):
    """Return the compiled network with the converted weights: images to (features, logits)."""
    _, path = keras_network
    config, variables, *_ = inception_map.from_keras(keras_h5.read_layers(path), path.name)
    module = config.build()

    def both(network, images):
        features = network(images)
        return features, network.classifier(features.pooled)

    compiled = jax.jit(lambda variables, images: module.apply(variables, images, method=both))
    return lambda images: compiled(variables, images)


def test_features_equal_those_of_keras(keras_network, converted_network, images):
    judge, _ = keras_network
    pixels = images(299)
    grid, pooled, logits = judge.predict(np.float32(pixels) / 127.5 - 1, verbose=0)
    features, our_logits = converted_network(pixels)
    assert features.grid.shape == (2, 64, 2048)
    assert relative_rms(np.asarray(features.grid), grid.reshape(2, 64, 2048)) < TOLERANCE
    assert relative_rms(np.asarray(features.pooled), pooled) < TOLERANCE
    assert relative_rms(np.asarray(our_logits), logits) < TOLERANCE
    assert np.std(pooled, axis=0).mean() > 100 * TOLERANCE  # the images are told apart


@pytest.fixture(scope="module")
def torch_network(tmp_path_factory):
    """Return the PyTorch network, all its tensors random, and ours compiled with the converted weights."""
    torch = pytest.importorskip("torch")
    import torchvision_inception

    model = torchvision_inception.inception_v3(transform_input=True).eval()
    rng = np.random.default_rng(1)
    state = {
        name: torch.from_numpy(random_tensor(rng, name, tuple(tensor.shape))) if tensor.ndim else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    path = tmp_path_factory.mktemp("torch") / "inception.pth"
    torch.save(model.state_dict(), path)
    config, variables, *_ = inception_map.from_torchvision(torchvision.read_state_dict(path), path.name)
    compiled = jax.jit(config.build().apply)
    return model, lambda scaled: compiled(variables, scaled)


@pytest.mark.parametrize("input_scaling", ["symmetric", "imagenet"])
def test_features_equal_those_of_torchvision(torch_network, images, input_scaling):
    import torch

    judge, converted_network = torch_network
    judge.transform_input = input_scaling == "symmetric"
    pixels = images(111)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    normalised = (np.float32(pixels) / 255 - mean) / std
    with torch.inference_mode():
        grid = judge.grid(torch.from_numpy(normalised).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    scaled = inception_v3.scale_images(jnp.asarray(pixels), input_scaling)  # floats: one program for both scalings
    features = converted_network(scaled)
    assert grid.shape == (2, 2, 2, 2048)
    assert relative_rms(np.asarray(features.grid), grid.reshape(2, 4, 2048)) < TOLERANCE
    assert relative_rms(np.asarray(features.pooled), grid.mean((1, 2))) < TOLERANCE


def endpoint_shapes(config, size):
    module = config.build()

    def blocks(variables, images):
        is_block = lambda submodule, _: isinstance(submodule, inception_v3.InceptionBlock)  # noqa: E731
        return module.apply(variables, images, capture_intermediates=is_block)[1]["intermediates"]

    variables = encoder_file.unflatten(
        {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in encoder_file.variable_shapes(config).items()}
    )
    captured = jax.eval_shape(blocks, variables, jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
    return {name: outputs["__call__"][0].shape[1:] for name, outputs in captured.items()}


def test_blocks_have_the_published_shapes():
    expected = {"stem": (35, 35, 192), "mixed0": (35, 35, 256), "mixed1": (35, 35, 288), "mixed2": (35, 35, 288)}
    expected |= {f"mixed{i}": (17, 17, 768) for i in range(3, 8)}
    expected |= {"mixed8": (8, 8, 1280), "mixed9": (8, 8, 2048), "mixed10": (8, 8, 2048)}
    assert endpoint_shapes(encoder_file.EncoderConfig(), 299) == expected


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 21_802_784),  # what Keras reports without top
        ({"num_classes": 1000}, 23_851_784),  # and with
        ({"convention": "torchvision"}, 21_802_784 + 17_216),  # a scale for each of the 17,216 filters
    ],
)
def test_number_of_variables(fields, count):
    shapes = encoder_file.variable_shapes(encoder_file.EncoderConfig(**fields))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def test_depth_multiplier_scales_filters_down_to_the_minimum():
    config = encoder_file.EncoderConfig(depth_multiplier=0.3, min_depth=24, final_endpoint="mixed4")
    shapes = encoder_file.variable_shapes(config)
    assert shapes["params/stem/conv_1/kernel"] == (3, 3, 3, 24)  # int(32 · 0.3) = 9
    assert shapes["params/stem/conv_5/kernel"] == (3, 3, 24, 57)  # int(192 · 0.3)
    assert shapes["params/mixed4/branch7x7dbl_5/kernel"] == (1, 7, 38, 57)  # int(128 · 0.3), int(192 · 0.3)
    assert not any(name.startswith("params/mixed5") for name in shapes)


SMALL = encoder_file.EncoderConfig(depth_multiplier=0.1, min_depth=4, final_endpoint="mixed0")


@pytest.fixture(scope="module")
def small():
    """Return a small truncated network with random variables, and a compiled `apply`."""
    module = SMALL.build()
    return module, random_encoder(SMALL, seed=5), jax.jit(module.apply)


def test_truncation_leaves_the_blocks_before_as_they_are(small):
    _, _, apply = small
    longer = dataclasses.replace(SMALL, final_endpoint="mixed3")
    variables, images = random_encoder(longer, seed=6), random_images(2, 75, seed=0)
    expected = capjax_blocks(longer, variables, np.float32(images) / 127.5 - 1)["mixed0"]
    found = apply(variables, images)
    np.testing.assert_allclose(found.grid, expected.reshape(2, 49, -1), rtol=1e-4, atol=1e-5)


def test_scaled_floats_and_pixels_give_the_same_features(small):
    _, variables, apply = small
    images = random_images(2, 75, seed=0)
    from_pixels, from_floats = apply(variables, images), apply(variables, np.float32(images) / 127.5 - 1)
    np.testing.assert_allclose(from_pixels.grid, from_floats.grid, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(from_pixels.pooled, from_pixels.grid.mean(1), rtol=1e-5, atol=1e-6)


def test_stored_statistics_are_used_unless_training(small):
    module, variables, apply = small
    images = random_images(4, 75, seed=0)
    alone = apply(variables, images[:2])
    np.testing.assert_allclose(alone.grid, apply(variables, images).grid[:2], rtol=1e-4, atol=1e-5)

    train = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable="batch_stats"))
    features, updated = train(variables, images)
    assert relative_rms(np.asarray(features.grid[:2]), np.asarray(alone.grid)) > 0.1

    # The first convolution by hand: Keras keeps 0.99 of the stored moments at each step.
    kernel = variables["params"]["stem"]["conv_1"]["kernel"]
    scaled = np.asarray(inception_v3.scale_images(jnp.asarray(images)))
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (3, 3), axis=(1, 2))[:, ::2, ::2]
    response = np.einsum("nhwcij,ijcf->nhwf", windows, kernel)
    stored = variables["batch_stats"]["stem"]["conv_1"]["norm"]
    found = updated["batch_stats"]["stem"]["conv_1"]["norm"]
    np.testing.assert_allclose(found["mean"], 0.99 * stored["mean"] + 0.01 * response.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["var"], 0.99 * stored["var"] + 0.01 * response.var((0, 1, 2)), rtol=1e-4)


def test_grid_positions_are_row_by_row(small):
    _, variables, apply = small
    images = np.full((2, 75, 75, 3), 128, np.uint8)  # a 7×7 grid after mixed0
    images[1, :8, -8:] = 255  # top right corner
    grid = apply(variables, images).grid
    change = np.abs(grid[1] - grid[0]).sum(-1).reshape(7, 7)
    assert np.unravel_index(np.argmax(change), (7, 7)) == (0, 6)


def test_bfloat16_computes_in_bfloat16_and_stays_close(small):
    _, variables, apply = small
    images = random_images(2, 75, seed=0)
    features = jax.jit(SMALL.build(jnp.bfloat16).apply)(variables, images)
    assert features.grid.dtype == features.pooled.dtype == jnp.bfloat16
    assert relative_rms(np.asarray(features.grid, np.float32), np.asarray(apply(variables, images).grid)) < 0.05


@pytest.mark.parametrize(
    ("endpoint", "smallest"), [("mixed0", 27), ("mixed2", 27), ("mixed3", 43), ("mixed7", 43), ("mixed10", 75)]
)
def test_smallest_image_leaves_one_position_and_a_smaller_one_is_refused(endpoint, smallest):
    config = encoder_file.EncoderConfig(depth_multiplier=0.1, final_endpoint=endpoint)
    assert endpoint_shapes(config, smallest)[endpoint][:2] == (1, 1)
    with pytest.raises(CapjaxError, match=f"{endpoint} needs images of {smallest} px or more, got {smallest - 1}×"):
        endpoint_shapes(config, smallest - 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"final_endpoint": "mixed11"}, "final_endpoint must be one of mixed0 … mixed10, got 'mixed11'"),
        ({"convention": "slim"}, "convention must be keras or torchvision, got 'slim'"),
        ({"input_scaling": "unit"}, "input_scaling must be symmetric or imagenet, got 'unit'"),
    ],
)
@pytest.mark.usefixtures("wrong_types_allowed")
def test_unknown_options_are_refused(fields, message):
    with pytest.raises(CapjaxError, match=message):
        encoder_file.variable_shapes(encoder_file.EncoderConfig(**fields))


def test_integers_other_than_pixels_are_refused(small):
    module, variables, _ = small
    with pytest.raises(CapjaxError, match="uint8 pixels or scaled floats, got int32"):
        module.apply(variables, jnp.zeros((1, 75, 75, 3), jnp.int32))
