"""`capjax weights` from the command line: fetch, convert, verify, and the one-line errors."""

import hashlib
import http.server
import pathlib
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from capjax.cli import main
from capjax.host.download import RemoteFile
from capjax.pretrained import encoder_file, inception_map
from capjax.pretrained.published import PUBLISHED
from capjax.pretrained.random_encoder import random_encoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch

TORCHVISION = encoder_file.EncoderConfig(convention="torchvision", image_size=75)


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    """Return random weights under torchvision's names, with a tensor that the encoder does not need."""
    state = inception_map.to_torchvision(random_encoder(TORCHVISION, seed=0))
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.numpy.save_file(state | {"AuxLogits.fc.bias": np.zeros(1000, np.float32)}, path)
    return path


def test_convert_reports_and_writes(torchvision_file, tmp_path, capsys):
    out = tmp_path / "encoder.safetensors"
    assert main(["weights", "convert", str(torchvision_file), "--out", str(out), "--input_scaling=imagenet"]) == 0
    loaded = encoder_file.load_encoder(out)
    assert loaded.config == encoder_file.EncoderConfig(
        convention="torchvision", input_scaling="imagenet", source="inception.safetensors"
    )
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("params/mixed0/branch5x5_2/kernel ")]
    kernel = loaded.variables["params"]["mixed0"]["branch5x5_2"]["kernel"]
    moments = [f"{kernel.mean():.3g}", f"{kernel.std():.3g}"]
    assert line.split()[1:] == ["Mixed_5b.branch5x5_2.conv.weight", "5×5×48×64", *moments]
    assert "skipped AuxLogits.fc.bias 1000: not part of the encoder" in lines
    assert loaded.sha256 in lines[-1] and "470 tensors, 21,820,000 numbers, torchvision convention" in lines[-1]


def test_pth_and_safetensors_give_the_same_encoder(torchvision_file, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(t) for name, t in safetensors.numpy.load_file(torchvision_file).items()}
    torch.save(state, tmp_path / "inception.pth")
    parallel = {f"module.{name}": t for name, t in safetensors.numpy.load_file(torchvision_file).items()}
    safetensors.numpy.save_file(parallel, tmp_path / "parallel.safetensors")  # as DataParallel names them
    files = [torchvision_file, tmp_path / "inception.pth", tmp_path / "parallel.safetensors"]
    for i, file in enumerate(files):
        assert main(["weights", "convert", str(file), "--out", str(tmp_path / f"{i}")]) == 0
    assert len({encoder_file.load_encoder(tmp_path / f"{i}").sha256 for i in range(len(files))}) == 1


def error_of(capsys, *arguments):
    assert main(["weights", *map(str, arguments)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("capjax: error: ")
    return lines[0]


def test_errors_are_one_line_and_leave_the_target_alone(torchvision_file, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("earlier")

    def convert(file, *more):
        message = error_of(capsys, "convert", file, "--out", out, *more)
        assert out.read_text() == "earlier"
        return message

    assert "no such file" in convert(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("<!DOCTYPE html> Not found")
    assert "neither Keras HDF5 nor PyTorch nor safetensors; it starts with b'<!DOCTYPE" in convert(tmp_path / "text.h5")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "neither Keras" in convert(tmp_path / "empty.pth")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(torchvision_file.read_bytes()[:-1000])
    assert "is it complete?" in convert(truncated)
    tensors = safetensors.numpy.load_file(torchvision_file)
    del tensors["Mixed_7c.branch_pool.bn.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "part.safetensors")
    assert "(differences: 1): missing Mixed_7c.branch_pool.bn.bias (192,)" in convert(tmp_path / "part.safetensors")


def test_encoder_files_are_not_converted_again(tmp_path, capsys):
    config = encoder_file.EncoderConfig(depth_multiplier=0.1, final_endpoint="mixed0")
    encoder_file.save_encoder(tmp_path / "x.safetensors", config, random_encoder(config, seed=0))
    message = error_of(capsys, "convert", tmp_path / "x.safetensors", "--out", tmp_path / "y")
    assert "is an encoder file already" in message


def test_verify_small_encoder(tmp_path, capsys):
    config = encoder_file.EncoderConfig(depth_multiplier=0.1, final_endpoint="mixed0")
    path = tmp_path / "x.safetensors"
    sha256 = encoder_file.save_encoder(path, config, random_encoder(config, seed=0))
    assert main(["weights", "verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert sha256 in out and "original implementations exist for the full network only" in out
    broken = encoder_file.flatten(random_encoder(config, seed=0))
    broken["params/stem/conv_1/kernel"][0, 0, 0, 0] = np.inf
    encoder_file.save_encoder(path, config, encoder_file.unflatten(broken))
    assert "params/stem/conv_1/kernel) holds 1 values that are not finite" in error_of(capsys, "verify", path)


def verify_beside_original(config, tmp_path, capsys, status=0):
    path = tmp_path / "x.safetensors"
    encoder_file.save_encoder(path, config, random_encoder(config, seed=0))
    assert main(["weights", "verify", str(path)]) == status
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines() if "relative RMS" in line]
    assert [line[0] for line in lines] == [f"mixed{i}" for i in range(11)]
    assert all(0 < float(line[-1]) < 1e-5 for line in lines)
    return err


def test_verify_beside_keras(tmp_path, capsys):
    pytest.importorskip("keras")
    assert not verify_beside_original(encoder_file.EncoderConfig(image_size=75), tmp_path, capsys)


def test_verify_beside_torchvision(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except ImportError:  # a plain PyTorch network of the same names and signature stands in for it
        monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "models")
        import importlib.machinery

        import torchvision_inception

        stand_in = type(sys)("torchvision")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
        stand_in.models = torchvision_inception
        monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.setattr("capjax.convert_weights._TOLERANCE", 0.0)
    error = verify_beside_original(TORCHVISION, tmp_path, capsys, status=1)
    assert "differs from torchvision by more than 0.0 from mixed0 on" in error


def test_fetch_downloads_verifies_and_converts(torchvision_file, tmp_path, capsys, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=torchvision_file.parent)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{torchvision_file.name}"
        fetch = ["fetch", "keras", f"--url={url}", f"--cache_dir={tmp_path}", f"--out={tmp_path / 'out.safetensors'}"]
        assert f"{url} with md5:bcbd6486424b2319ff4ef7d526e38f63" in error_of(capsys, *fetch)
        assert list(tmp_path.iterdir()) == []

        digest = f"md5:{hashlib.md5(torchvision_file.read_bytes()).hexdigest()}"
        monkeypatch.setitem(PUBLISHED, "keras", RemoteFile(url, digest))
        assert main(["weights", *fetch]) == 0
        server.shutdown()
        thread.join()
    assert f"{digest} as published" in capsys.readouterr().out
    assert encoder_file.load_encoder(tmp_path / "out.safetensors").config.convention == "torchvision"
