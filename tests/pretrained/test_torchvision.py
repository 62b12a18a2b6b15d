"""PyTorch checkpoints read without PyTorch, against torch.load; and files that try to run something."""

import builtins
import collections
import contextlib
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.pretrained import torchvision
from capjax.pretrained.torchvision import read_state_dict

torch = pytest.importorskip("torch")


def example_state():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    return collections.OrderedDict(
        kernel=torch.randn(4, 3, 2, 2, generator=generator),
        transposed=base.T,
        slice=base[2:, 1:4],
        shared=base,
        double=base.double(),
        half=base.half(),
        brain=base.bfloat16(),
        count=torch.tensor(7),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(base.clone()),
    )


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_equal_those_of_torch_load(tmp_path, is_zip):
    path = tmp_path / "state.pth"
    torch.save(example_state(), path, _use_new_zipfile_serialization=is_zip)
    found, expected = read_state_dict(path), torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        exact = tensor.detach().double().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float64), exact, err_msg=name)
    assert found["half"].dtype == np.float16 and found["count"].dtype == np.int64


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_wrapped_state_dicts_are_found(tmp_path, wrap):
    state = {"module.conv.weight": torch.ones(2)}
    torch.save(wrap(state), tmp_path / "state.pth")
    assert list(read_state_dict(tmp_path / "state.pth")) == ["conv.weight"]


def test_state_dict_of_a_module_with_its_metadata(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "state.pth")
    found = read_state_dict(tmp_path / "state.pth")
    np.testing.assert_array_equal(found["0.weight"], module[0].weight.detach().numpy())


class RunsCommand:
    """Unpickles by calling a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Boobytrap(RunsCommand):
    """The same as an object that is built, then given its state by another call."""

    def __reduce__(self):
        return collections.OrderedDict, (), None, None, iter([("weight", RunsCommand(*self.call[:1], *self.call[1]))])


def attacks(victim):
    command = f"touch {victim}"
    yield "os.system", RunsCommand(os.system, command)
    yield "eval", RunsCommand(builtins.eval, f"__import__('os').system({command!r})")
    yield "exec", RunsCommand(builtins.exec, f"open({str(victim)!r}, 'w')")
    yield "open", RunsCommand(open, str(victim), "w")
    yield "nested", Boobytrap(os.system, command)
    yield "among tensors", {"weight": RunsCommand(os.system, command), "other": torch.ones(2)}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("position", range(6))
def test_malicious_pickle_runs_nothing(tmp_path, position, is_zip):
    victim, path = tmp_path / "executed", tmp_path / "evil.pth"
    _, attack = list(attacks(victim))[position]
    torch.save(attack, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CapjaxError, match="which a file of plain tensors does not need and capjax does not run"):
        read_state_dict(path)
    assert not victim.exists()


def test_the_attacks_are_real(tmp_path):
    for name, attack in attacks(tmp_path / "executed"):
        if name != "among tensors":  # tensors do not pickle without torch.save
            pickle.loads(pickle.dumps(attack))
            assert (tmp_path / "executed").exists(), name
            (tmp_path / "executed").unlink()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_runs_nothing(tmp_path, protocol):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(RunsCommand(os.system, f"touch {tmp_path / 'executed'}"), protocol))
    with pytest.raises(CapjaxError, match="system, which a file of plain tensors does not need"):
        read_state_dict(path)
    assert not (tmp_path / "executed").exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CapjaxError, match=r"wants torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\) alone"):
        read_state_dict(tmp_path / "module.pth")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_truncated_files_are_refused(tmp_path, is_zip, share):
    path = tmp_path / "state.pth"
    torch.save({"weight": torch.ones(1000)}, path, _use_new_zipfile_serialization=is_zip)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CapjaxError, match="is it complete"):
        read_state_dict(path)


def test_flipped_bits_are_noticed(tmp_path):
    path = tmp_path / "state.pth"
    torch.save({"weight": torch.ones(1000)}, path)
    data = path.read_bytes()
    position = data.index(np.ones(10, np.float32).tobytes())
    path.write_bytes(data[:position] + b"\x13" + data[position + 1 :])
    with pytest.raises(CapjaxError, match="CRC"):
        read_state_dict(path)


def forged(size, offset, shape, strides):
    """Return the pickle of a tensor that claims any extent over a storage of ten floats."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (self.storage, offset, shape, strides, False, {})

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if value == "the storage" else None

    import io

    stream, tensor = io.BytesIO(), Tensor()
    tensor.storage = "the storage"
    Pickler(stream, protocol=2).dump({"weight": tensor})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "offset", "shape", "strides"),
    [
        (10, 0, (11,), (1,)),  # longer than the storage
        (10, 5, (6,), (1,)),
        (10, 0, (3, 2), (5, 1)),
        (10, -1, (2,), (1,)),
        (10, 9, (2,), (-1,)),
        (10, 0, (-1,), (1,)),
        (10, 0, (1 << 40,), (0,)),  # a terabyte out of ten numbers
        (1000, 0, (1000,), (1,)),  # a storage longer than the file's
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, size, offset, shape, strides):
    path = tmp_path / "forged.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", forged(size, offset, shape, strides))
        archive.writestr("archive/data/0", np.arange(10, dtype="<f4").tobytes())
    with pytest.raises(CapjaxError):
        read_state_dict(path)


def test_honest_forgery_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "forged.pth", "w") as archive:
        archive.writestr("archive/data.pkl", forged(10, 1, (3, 2), (2, 1)))
        archive.writestr("archive/data/0", np.arange(10, dtype=">f4").tobytes())
        archive.writestr("archive/byteorder", "big")
    found = read_state_dict(tmp_path / "forged.pth")["weight"]
    np.testing.assert_array_equal(found, [[1, 2], [3, 4], [5, 6]])


def test_missing_file(tmp_path):
    with pytest.raises(CapjaxError, match="cannot read"):
        read_state_dict(tmp_path / "absent.pth")


def test_compressed_members_are_refused_before_they_are_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forged(10, 0, (10,), (1,)))
        archive.writestr("archive/data/0", bytes(64_000_000))
    with peak_below(8_000_000), pytest.raises(CapjaxError, match="stored uncompressed"):
        read_state_dict(tmp_path / "bomb.pth")


def test_members_that_lie_over_one_another_are_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", forged(10, 0, (10,), (1,)))
        archive.writestr("archive/data/0", bytes(1_000_000))
        for number in range(1, 9):  # all of them the same bytes of the file
            info = archive.getinfo("archive/data/0")
            twin = zipfile.ZipInfo(f"archive/data/{number}")
            twin.header_offset, twin.CRC = info.header_offset, info.CRC
            twin.file_size = twin.compress_size = info.file_size
            archive.filelist.append(twin)
    with pytest.raises(CapjaxError, match="larger than the whole file"):
        read_state_dict(path)


def test_members_that_no_tensor_needs_are_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "more.pth", "w") as archive:
        archive.writestr("archive/data.pkl", forged(10, 0, (10,), (1,)))
        archive.writestr("archive/data/0", np.arange(10, dtype="<f4").tobytes())
        archive.writestr("archive/code/notes", bytes(64_000_000))
    with peak_below(8_000_000):
        assert read_state_dict(tmp_path / "more.pth")["weight"].tolist() == list(range(10))


def test_many_tensors_of_one_storage_take_the_memory_of_one(tmp_path):
    storage = torch.ones(1_000_000)
    torch.save({f"weight_{number}": storage for number in range(100)}, tmp_path / "shared.pth")
    with peak_below(16_000_000):
        assert len(read_state_dict(tmp_path / "shared.pth")) == 100


NESTED = b"X\1\0\0\0a" + b"q\0h\0\x86" * 1 + b"q\1h\1\x86" * 200  # a pair of pairs of pairs …, each twice the same


@pytest.mark.parametrize(
    "instructions",
    [
        b"}r" + struct.pack("<I", 100_000_000),  # an object that says it is one of a hundred million
        b"\x96" + struct.pack("<Q", 10**9),  # a byte array of a gigabyte
        b"}" + NESTED + b"K\1s",  # what takes for ever to hash: as a key
        b"\x8f(" + NESTED + b"\x90",  # in a set
        b"}X\1\0\0\0x(X\7\0\0\0storage" + NESTED + b"X\1\0\0\0aX\3\0\0\0cpuK\1tQs",  # as the type of a storage
        b"}X\1\0\0\0x(X\7\0\0\0storagectorch\nFloatStorage\n" + NESTED + b"X\3\0\0\0cpuK\1tQs",  # as its key
    ],
)
def test_a_few_bytes_neither_fill_the_memory_nor_take_for_ever(tmp_path, instructions):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
    with peak_below(8_000_000), contextlib.suppress(CapjaxError):
        assert read_state_dict(tmp_path / "x.pth") == {}


def test_a_checkpoint_does_not_change_how_the_next_one_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        defaults = b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\0\0\0__defaults__K\1\x85stb."
        archive.writestr("archive/data.pkl", b"\x80\x02" + defaults)
    with pytest.raises(CapjaxError):
        read_state_dict(tmp_path / "evil.pth")
    assert torchvision._rebuild_tensor.__defaults__ is None


def test_many_tensors_of_one_storage_in_the_other_byte_order_take_the_memory_of_one(tmp_path):
    state = {f"weight_{number}": storage for storage in [torch.ones(1_000_000)] for number in range(100)}
    torch.save(state, tmp_path / "shared.pth")
    with zipfile.ZipFile(tmp_path / "shared.pth") as archive, zipfile.ZipFile(tmp_path / "big.pth", "w") as other:
        for info in archive.infolist():
            content = b"big" if info.filename.endswith("byteorder") else archive.read(info)
            other.writestr(info.filename, np.frombuffer(content, "f4").byteswap() if len(content) > 10**6 else content)
    with peak_below(24_000_000):
        tensors = read_state_dict(tmp_path / "big.pth")
    assert len(tensors) == 100 and (tensors["weight_99"] == 1).all()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_damaged_files_are_refused_in_one_line_or_read(tmp_path, is_zip):
    path, rng = tmp_path / "state.pth", np.random.default_rng(0)
    torch.save(example_state(), path, _use_new_zipfile_serialization=is_zip)
    whole, num_refused = path.read_bytes(), 0
    for _ in range(500):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=rng.integers(1, 9)):
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            read_state_dict(path)
        except CapjaxError as error:
            assert "\n" not in str(error)
            num_refused += 1
    assert num_refused > 50


@contextlib.contextmanager
def peak_below(num_bytes):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()
