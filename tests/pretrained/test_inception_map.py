"""Where foreign tensors go: every layout that Keras writes, torchvision's names, refusals that name the difference."""

import os
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.models import inception_v3
from capjax.pretrained import encoder_file, inception_map, keras_h5
from capjax.pretrained.random_encoder import random_encoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch


@pytest.fixture(scope="module")
def variables():
    return random_encoder(encoder_file.EncoderConfig(num_classes=7), seed=0)


@pytest.fixture(scope="module")
def layers(variables):
    """Return the layers of a Keras file as published: conv2d_1 … conv2d_94, with top."""
    found = {"predictions": dict(variables["params"]["classifier"])}
    for number, (block, unit, _) in enumerate(inception_v3.conv_units(), start=1):
        params, stored = variables["params"][block][unit], variables["batch_stats"][block][unit]["norm"]
        found[f"conv2d_{number}"] = {"kernel": params["kernel"]}
        found[f"batch_normalization_{number}"] = {
            "beta": params["norm"]["bias"],
            "moving_mean": stored["mean"],
            "moving_variance": stored["var"],
        }
    return found


def assert_same(found, expected):
    found, expected = encoder_file.flatten(found), encoder_file.flatten(expected)
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def write_published_layout(group, layers, pieces=1):
    """Write the layout of the published files: byte strings, `conv2d_1/kernel:0`, long attributes cut into pieces."""
    names = np.array(sorted([*layers, "activation_1"], reverse=True), dtype="S")  # an order that means nothing
    for index, piece in enumerate(np.array_split(names, pieces)):
        group.attrs["layer_names" if pieces == 1 else f"layer_names{index}"] = piece
    group.create_group("activation_1").attrs["weight_names"] = np.array([], dtype="S1")
    for layer, weights in layers.items():
        layer_group = group.create_group(layer)
        layer_group.attrs["weight_names"] = np.array([f"{layer}/{name}:0" for name in weights], dtype="S")
        for name, array in weights.items():
            layer_group[f"{layer}/{name}:0"] = array


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("inside", ["/", "model_weights"])
def test_published_layout(tmp_path, layers, variables, inside, pieces):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_published_layout(file.require_group(inside), layers, pieces)
    conversion = inception_map.from_keras(keras_h5.read_layers(tmp_path / "x.h5"), "x.h5")
    assert conversion.config == encoder_file.EncoderConfig(num_classes=7, source="x.h5")
    assert_same(conversion.variables, variables)


@pytest.mark.parametrize("first", [0, 1, 94])
def test_numbers_may_start_anywhere(layers, variables, first):
    def renamed(layer):
        kind, _, number = layer.rpartition("_")
        return f"{kind}_{int(number) - 1 + first}" if int(number) - 1 + first else kind

    moved = {renamed(layer): weights for layer, weights in layers.items() if layer != "predictions"}
    conversion = inception_map.from_keras(moved, "x.h5")
    without_top = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "classifier"}}
    assert conversion.config.num_classes is None
    assert_same(conversion.variables, without_top)


def test_files_that_keras_writes(tmp_path):
    keras = pytest.importorskip("keras")
    keras.backend.clear_session()
    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(75, 75, 3))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in layer.weights])
    model.save_weights(tmp_path / "keras3.weights.h5")
    model.save(tmp_path / "whole.h5")
    whole, keras_3 = (
        inception_map.from_keras(keras_h5.read_layers(tmp_path / name), name).variables
        for name in ("whole.h5", "keras3.weights.h5")
    )
    assert_same(whole, keras_3)
    stored = whole["batch_stats"]["mixed9"]["branch3x3_2b"]["norm"]
    # mixed9: 1x1, then 3x3_1, 3x3_2a and 3x3_2b, the 80th convolution: Keras counts from 0
    _, mean, variance = model.get_layer("batch_normalization_79").get_weights()
    np.testing.assert_array_equal(stored["mean"], mean)
    np.testing.assert_array_equal(stored["var"], variance)


def test_network_as_a_layer_of_another_model(tmp_path, layers, variables):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = ["inception_v3"]
        group = file.create_group("inception_v3")
        paths = {f"{layer}/{name}:0": array for layer, weights in layers.items() for name, array in weights.items()}
        for piece, names in enumerate(np.array_split(list(paths), 2)):
            group.attrs[f"weight_names{piece}"] = names.astype("S")
        for path, array in paths.items():
            group[path] = array
    conversion = inception_map.from_keras(keras_h5.read_layers(tmp_path / "x.h5"), "x.h5")
    assert_same(conversion.variables, variables)


def test_report_says_what_was_loaded_where(layers, variables):
    loaded = {row.target: row for row in inception_map.from_keras(layers, "x.h5").loaded}
    assert len(loaded) == 4 * 94 + 2
    row = loaded["batch_stats/mixed0/branch5x5_2/norm/var"]
    variance = variables["batch_stats"]["mixed0"]["branch5x5_2"]["norm"]["var"]
    assert (row.source, row.shape) == ("batch_normalization_8/moving_variance", (64,))
    assert (row.mean, row.std) == pytest.approx((variance.mean(), variance.std()))


def without(layers, name):
    return {layer: weights for layer, weights in layers.items() if layer != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ls: without(ls, "conv2d_50"), r"\(differences: 1\): missing conv2d_50/kernel \(1, 1, 768, 192\)$"),
        (lambda ls: ls | {"conv2d_95": {"kernel": np.zeros((1, 2))}}, r"unexpected conv2d_95/kernel \(1, 2\)"),
        (
            lambda ls: ls | {"conv2d_7": {"kernel": np.zeros((3, 3, 48, 64))}},
            r"conv2d_7/kernel is \(3, 3, 48, 64\), expected \(1, 1, 192, 48\)",
        ),
        (
            lambda ls: ls | {"batch_normalization_3": ls["batch_normalization_3"] | {"gamma": np.ones(64)}},
            r"unexpected batch_normalization_3/gamma \(64,\)",
        ),
        (lambda ls: ls | {"dense": {"kernel": np.zeros((2, 2))}}, r"unexpected dense/kernel \(2, 2\)"),
        (lambda ls: ls | {"predictions": {"kernel": np.zeros((2048, 7))}}, "missing predictions/bias"),
        (lambda _: {"block1_conv1": {"kernel": np.zeros((3, 3, 3, 64))}}, "has no layer conv2d…: expected the weights"),
        (
            lambda ls: ls | {"conv2d_1": {"kernel": np.full((3, 3, 3, 32), np.nan)}},
            r"conv2d_1/kernel \(params/stem/conv_1/kernel\) holds 864 values that are not finite",
        ),
        (
            lambda ls: ls | {"batch_normalization_1": ls["batch_normalization_1"] | {"moving_variance": -np.ones(32)}},
            r"batch_normalization_1/moving_variance .* holds negative variances",
        ),
    ],
)
def test_what_does_not_fit_is_named(layers, change, message):
    with pytest.raises(CapjaxError, match=message):
        inception_map.from_keras(change(layers), "x.h5")


def test_torchvision_names_and_axes():
    config = encoder_file.EncoderConfig(convention="torchvision", num_classes=5, source="x.pth")
    variables = random_encoder(config, seed=1)
    state = inception_map.to_torchvision(variables)
    assert state["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert state["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["fc.weight"].shape == (5, 2048)
    state["AuxLogits.fc.bias"] = np.zeros(5, np.float32)
    state["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(3)
    conversion = inception_map.from_torchvision(state, "x.pth")
    assert conversion.config == config
    assert_same(conversion.variables, variables)
    assert conversion.skipped == {"AuxLogits.fc.bias": (5,), "Mixed_5b.branch1x1.bn.num_batches_tracked": ()}

    state["Mixed_5b.branch1x1.conv.weight"] = state["Mixed_5b.branch1x1.conv.weight"].transpose(2, 3, 1, 0)
    with pytest.raises(CapjaxError, match=r"Mixed_5b.*weight is \(1, 1, 192, 64\), expected \(64, 192, 1, 1\)"):
        inception_map.from_torchvision(state, "x.pth")


def test_hdf5_of_another_kind(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(CapjaxError, match="HDF5 but not Keras weights"):
        keras_h5.read_layers(tmp_path / "x.h5")


def test_truncated_hdf5(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_published_layout(file, {"conv2d_1": {"kernel": np.zeros((3, 3, 3, 32))}})
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(CapjaxError, match=r"is it complete.*truncated file"):
        keras_h5.read_layers(tmp_path / "x.h5")


def test_keras_3_file_without_layer_names(tmp_path):
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 32))
    with pytest.raises(CapjaxError, match="does not name its layers"):
        keras_h5.read_layers(tmp_path / "x.weights.h5")


def _layers(file, names):
    file.attrs["layer_names"] = names


def _weight(file, name):
    _layers(file, ["conv2d"])
    file.create_group("conv2d").attrs["weight_names"] = [name]


@pytest.mark.parametrize(
    "make",
    [
        lambda file: _layers(file, 3),
        lambda file: _layers(file, [b"\xff"]),
        lambda file: _weight(file, "kernel"),
        lambda file: (_weight(file, "conv2d/kernel"), file["conv2d"].create_group("conv2d/kernel")),
        lambda file: file.create_dataset("layers", data=[1]),
        lambda file: file.create_group("layers/0").create_dataset("vars", data=3),
        lambda file: file.create_group("layers/0/vars/0").parent.attrs.update(name="conv2d"),
    ],
)
def test_hdf5_of_another_make_is_one_line(tmp_path, make):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        make(file)
    with pytest.raises(CapjaxError, match=r"cannot read .*x\.h5") as caught:
        keras_h5.read_layers(tmp_path / "x.h5")
    assert "\n" not in str(caught.value)


def _chunk(group, name, data, mask=0, **storage):
    """A weight of 32 numbers in one chunk, which holds something else."""
    group.create_dataset(name, (32,), "f4", chunks=(32,), **storage).id.write_direct_chunk((0,), data, mask)


def _external(group, name):
    group.create_dataset(name, (32,), "f4", external=[("elsewhere.bin", 0, 128)])


@pytest.mark.parametrize(
    "make",
    [
        lambda group, name: group.create_dataset(name, (3, 3, 3, 32 * 10**10), "f4"),  # declared, never written
        lambda group, name: group.create_dataset(name, (3, 3, 3, 32 * 10**10), "f4", compression="gzip"),
        lambda group, name: group.create_dataset(name, (64,), "f4", chunks=(32,)).write_direct(
            np.ones(32, "f4"), dest_sel=np.s_[:32]
        ),
        # A chunk takes its own room, whatever there is of the weight.
        lambda group, name: group.create_dataset(name, (32,), "f4", np.ones(32), chunks=(64,), maxshape=(None,)),
        lambda group, name: _chunk(group, name, bytes(16)),
        lambda group, name: _chunk(group, name, zlib.compress(bytes(16)), compression="gzip"),
        lambda group, name: _chunk(group, name, zlib.compress(bytes(2_000_000)), compression="gzip"),
        lambda group, name: _chunk(group, name, bytes(128), mask=1, compression="gzip"),
        lambda group, name: group.create_dataset(name, (32,), "f4", np.ones(32), compression="lzf"),
        lambda group, name: group.create_dataset(name, (3,), h5py.string_dtype(), ["a"] * 3, chunks=(3,)),
        lambda group, name: group.create_dataset(name, data=h5py.Empty("f4")),
        _external,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["vars/0", "conv2d/kernel:0"])
def test_weights_that_the_file_does_not_hold_are_refused_unread(tmp_path, name, make):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if name == "vars/0":
            group = file.create_group("layers/conv2d")
            group.create_group("vars").attrs["name"] = "conv2d"
        else:
            _weight(file, name)
            group = file["conv2d"]
        make(group, name)
    tracemalloc.start()
    try:
        with pytest.raises(CapjaxError, match=r"x\.h5.*expected (a file that holds|weights)") as caught:
            keras_h5.read_layers(tmp_path / "x.h5")
        assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("link", ["model_weights", "layers", "conv2d", "conv2d/conv2d", "layers/x/vars/0"])
@pytest.mark.parametrize("kind", [lambda path: h5py.ExternalLink(path, "/"), lambda path: h5py.SoftLink("/other")])
def test_weights_in_another_place_are_refused_unopened(tmp_path, link, kind):
    """A link may name any file of the machine, or a pipe that never ends."""
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if link.startswith("conv2d"):
            _weight(file, "conv2d/kernel:0")
            del file["conv2d"]
        if link == "conv2d/conv2d":
            file.create_group("conv2d").attrs["weight_names"] = ["conv2d/kernel:0"]
        if link == "layers/x/vars/0":
            file.create_group("layers/x/vars").attrs["name"] = "conv2d"
        file[link] = kind(str(tmp_path / "pipe"))
        file["other"] = np.ones(3)
    with pytest.raises(CapjaxError, match=r"x\.h5: .*a link to another place") as caught:
        keras_h5.read_layers(tmp_path / "x.h5")
    assert "\n" not in str(caught.value)


def test_compressed_weights_are_read(tmp_path):
    weights = np.random.default_rng(0).integers(-99, 99, (3, 3, 3, 32)).astype("f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        _weight(file, "conv2d/kernel:0")
        file["conv2d"].create_dataset(
            "conv2d/kernel:0", data=weights, chunks=(2, 2, 3, 20), compression="gzip", shuffle=True, fletcher32=True
        )
        assert file["conv2d/conv2d/kernel:0"].id.get_storage_size() < weights.nbytes
    np.testing.assert_array_equal(keras_h5.read_layers(tmp_path / "x.h5")["conv2d"]["kernel"], weights)


def test_no_more_is_read_than_an_encoder_has(tmp_path, monkeypatch):
    """Compressed zeros, or one weight under many names, are small in a file only."""
    monkeypatch.setattr(keras_h5, "MOST_BYTES", 1_000_000)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        names = [f"{i}/kernel" for i in range(50)]
        _layers(file, ["conv2d"])
        group = file.create_group("conv2d")
        group.attrs["weight_names"] = names
        group.create_dataset("0/kernel", data=np.zeros(10_000), compression="gzip")
        for name in names[1:]:
            group[name] = group["0/kernel"]
    with pytest.raises(CapjaxError, match=r"at most 1,000,000 bytes together.*more with /conv2d/12/kernel of 80"):
        keras_h5.read_layers(tmp_path / "x.h5")
