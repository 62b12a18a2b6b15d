"""Encoder files: what is written comes back, and what is damaged or does not fit does not."""

import dataclasses
import json
import resource

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from capjax.errors import CapjaxError
from capjax.pretrained import encoder_file
from capjax.pretrained.random_encoder import random_encoder, random_images

CONFIG = encoder_file.EncoderConfig(
    convention="torchvision", depth_multiplier=0.1, min_depth=4, final_endpoint="mixed0", num_classes=3, image_size=75
)


@pytest.fixture(scope="module")
def variables():
    return random_encoder(CONFIG, seed=0)


@pytest.fixture
def saved(tmp_path, variables):
    path = tmp_path / "encoder.safetensors"
    encoder_file.save_encoder(path, CONFIG, variables)
    return path


def test_round_trip(saved, variables):
    loaded = encoder_file.load_encoder(saved)
    assert loaded.config == CONFIG
    found, expected = encoder_file.flatten(loaded.variables), encoder_file.flatten(variables)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected[name])


def test_half_precision_halves_the_file(saved, tmp_path, variables):
    half = tmp_path / "half.safetensors"
    encoder_file.save_encoder(half, CONFIG, variables, storage_dtype=np.float16)
    loaded = encoder_file.flatten(encoder_file.load_encoder(half).variables)
    for name, expected in encoder_file.flatten(variables).items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], expected.astype(np.float16))
    numbers = sum(array.size for array in loaded.values())
    assert saved.stat().st_size - half.stat().st_size == pytest.approx(2 * numbers, abs=64)


def test_hash_identifies_the_weights_and_nothing_else(tmp_path, variables):
    def sha256(config, variables):
        encoder_file.save_encoder(tmp_path / "x.safetensors", config, variables)
        return encoder_file.load_encoder(tmp_path / "x.safetensors").sha256

    original = sha256(CONFIG, variables)
    assert sha256(dataclasses.replace(CONFIG, source="elsewhere"), variables) == original
    changed = encoder_file.flatten(variables)
    kernel = changed["params/stem/conv_1/kernel"].copy()
    kernel[0, 0, 0, 0] += 1e-6
    changed["params/stem/conv_1/kernel"] = kernel
    assert sha256(CONFIG, encoder_file.unflatten(changed)) != original


def test_misfits_are_listed_and_leave_the_earlier_file_alone(saved, variables):
    before = saved.read_bytes()
    tensors = encoder_file.flatten(variables)
    tensors["params/extra"] = np.zeros(2, np.float32)
    tensors["params/stem/conv_1/kernel"] = np.zeros((3, 3, 3, 5), np.float32)
    del tensors["batch_stats/stem/conv_2/norm/mean"]
    with pytest.raises(CapjaxError) as error:
        encoder_file.save_encoder(saved, CONFIG, encoder_file.unflatten(tensors))
    assert str(error.value) == (
        "the encoder to save does not fit the network (differences: 3): "
        "missing batch_stats/stem/conv_2/norm/mean (4,); unexpected params/extra (2,); "
        "params/stem/conv_1/kernel is (3, 3, 3, 5), expected (3, 3, 3, 4)"
    )
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_write_that_fails_half_way_leaves_the_earlier_file_alone(saved, variables):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # acts as a disk that fills up
    try:
        with pytest.raises(CapjaxError, match="cannot write"):
            encoder_file.save_encoder(saved, CONFIG, variables)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_folder_that_cannot_be_made(tmp_path, variables):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CapjaxError, match="cannot write"):
        encoder_file.save_encoder(tmp_path / "file" / "x.safetensors", CONFIG, variables)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9999])
def test_truncated_file(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CapjaxError, match="cannot read the encoder"):
        encoder_file.load_encoder(saved)


def test_changed_value_is_noticed(saved):
    data = saved.read_bytes()
    saved.write_bytes(data[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(CapjaxError, match="is damaged: its tensors hash to"):
        encoder_file.load_encoder(saved)


def edit_header(path, edit):
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[encoder_file.METADATA_KEY])
    edit(header)
    safetensors.numpy.save_file(tensors, path, {encoder_file.METADATA_KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.update(format_version=2), "has encoder format 2, this capjax reads format 1"),
        (lambda h: h.update(final_endpoint="mixed1"), r"does not fit the network \(differences: \d+\): missing"),
        (lambda h: h.update(wings=2), "damaged header"),
        (lambda h: h.pop("sha256"), "damaged header"),
    ],
)
def test_header_of_another_version_or_network(saved, edit, message):
    edit_header(saved, edit)
    with pytest.raises(CapjaxError, match=message):
        encoder_file.load_encoder(saved)


def test_safetensors_of_another_program(tmp_path):
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CapjaxError, match="no capjax encoder file; convert other weights with `capjax weights"):
        encoder_file.load_encoder(tmp_path / "other.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(CapjaxError, match="cannot read the encoder"):
        encoder_file.load_encoder(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("convention", ["keras"]),
        ("depth_multiplier", "0.1"),
        ("depth_multiplier", float("nan")),
        ("depth_multiplier", -0.1),
        ("min_depth", None),
        ("min_depth", -3),
        ("final_endpoint", {}),
        ("num_classes", "3"),
        ("num_classes", -1),
        ("image_size", "299"),
        ("image_size", 0),
        ("source", 3),
        ("no such field", 1),
    ],
)
@pytest.mark.usefixtures("wrong_types_allowed")
def test_headers_with_senseless_fields_are_one_line(saved, field, value):
    with safetensors.safe_open(saved, framework="numpy") as file:
        header = json.loads(file.metadata()[encoder_file.METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    metadata = {encoder_file.METADATA_KEY: json.dumps(header | {field: value})}
    safetensors.numpy.save_file(tensors, saved, metadata=metadata)
    with pytest.raises(CapjaxError, match="damaged header") as caught:
        encoder_file.load_encoder(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["[]", "null", "{}", "[" * 100_000])
def test_headers_that_are_no_object_are_one_line(saved, header):
    safetensors.numpy.save_file({}, saved, metadata={encoder_file.METADATA_KEY: header})
    with pytest.raises(CapjaxError, match="damaged header"):
        encoder_file.load_encoder(saved)


def test_numbers_that_numpy_does_not_know_are_one_line(saved):
    header = json.dumps({"weight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    saved.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(CapjaxError, match="cannot read the encoder"):
        encoder_file.load_encoder(saved)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_network_is_cut_behind_any_of_its_blocks(num_classes):
    """The features are what the whole network computes on its way there."""
    whole = encoder_file.EncoderConfig(
        depth_multiplier=0.1, final_endpoint="mixed4", image_size=139, num_classes=num_classes
    )
    encoder = encoder_file.LoadedEncoder(whole, random_encoder(whole, 0))
    images = jnp.asarray(random_images(2, 139, seed=0))
    shapes = {}
    for endpoint in ("mixed0", "mixed3", "mixed4"):
        cut = encoder_file.cut_encoder(encoder, endpoint)
        features = cut.config.build().apply(cut.variables, images)
        _, endpoints = whole.build().apply(encoder.variables, images, capture_intermediates=True)
        (expected,) = endpoints["intermediates"][endpoint]["__call__"]
        np.testing.assert_allclose(features.pooled, expected.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
        shapes[endpoint] = cut.sha256
    assert len(set(shapes.values())) == 3
    with pytest.raises(CapjaxError, match=r"encoder\.endpoint out of mixed0, .*mixed4 for these weights, got 'mixed7'"):
        encoder_file.cut_encoder(encoder, "mixed7")
