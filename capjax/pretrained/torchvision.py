"""Reads the tensors in a PyTorch checkpoint (`.pth`, `.pt`) without PyTorch and without unpickling anything executable.

A checkpoint is a pickle that describes the tensors, and their raw storages: as members of a zip archive since PyTorch
1.6, one after the other in a single stream before. A pickle can name any function of any module to be called on
loading; the reader here resolves nothing but the handful of names that describe tensors, each to an inert stand-in of
its own, and refuses the file at the first other name. Nor can a few bytes of it fill the memory, or take for ever.
"""

import functools
import io
import math
import os
import pathlib
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from capjax.errors import CapjaxError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
    """A run of numbers stored outside the pickle."""

    type_name: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


ReadStorage = Callable[[_Storage], np.ndarray]

# What a damaged pickle raises from the standard unpickler and from the stand-ins below.
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError)
_MALFORMED += (pickle.UnpicklingError, EOFError)
# What a damaged or encrypted archive raises.
_DAMAGED = (OSError, zipfile.BadZipFile, struct.error, RuntimeError)


# The arguments come from the pickle: in a damaged one they are anything.
def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError("a tensor that is not described by a storage and whole numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _is_size(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _empty_dict() -> dict[str, Any]:
    return {}


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _empty_dict,  # which is filled by later instructions
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): name for name in _STORAGE_DTYPES},
}


class _TensorUnpickler(pickle._Unpickler):
    """Unpickles descriptions of tensors; every name outside `_STAND_INS` ends it before anything is called.

    It is the unpickler that is written in Python: the other one makes room for as many objects as a file claims to
    number. The instructions for sets and byte arrays are left out: they do so too, or hash what may be nested so that
    it never ends.
    """

    dispatch: ClassVar = {
        code: instruction
        for code, instruction in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.PERSID)
    }

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2 or not all(isinstance(key, str | int) for key in items[::2]):
            raise ValueError("a dictionary whose keys are neither texts nor whole numbers")
        if not isinstance(self.stack[-1], dict):
            raise ValueError("items of what is no dictionary")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        self.stack.pop()  # attributes, such as the versions of a state dict; a stand-in keeps none

    dispatch |= {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise CapjaxError(
                f"the checkpoint wants {module}.{name}, which a file of plain tensors does not need and capjax does "
                "not run; save model.state_dict() alone, or as safetensors"
            )
        return _STAND_INS[module, name]

    def persistent_load(self, persistent_id: Any) -> _Storage:
        kind, type_name, key, _, size, *view = persistent_id
        known = isinstance(type_name, str) and type_name in _STORAGE_DTYPES
        if kind != "storage" or not known or not isinstance(key, str) or any(part is not None for part in view):
            raise CapjaxError(f"the checkpoint has a storage of unknown kind: {reprlib.repr(persistent_id)}")
        if not _is_size(size) or size < 0:
            raise ValueError("a storage whose size is no whole number")
        return _Storage(type_name, key, size)


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the state dict of a checkpoint, also one inside {"state_dict": …} or with DataParallel's prefix "module.".

    Raises:
        CapjaxError: the file is unreadable, truncated or no state dict, or wants anything but tensors.
    """
    path = pathlib.Path(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_tensors(*_open_zip(archive, path.stat().st_size))
        return _read_tensors(*_open_legacy(io.BytesIO(path.read_bytes())))
    except CapjaxError as error:
        raise CapjaxError(f"{path}: {error}") from error
    except (*_DAMAGED, *_MALFORMED) as error:
        raise CapjaxError(f"cannot read {path} as a PyTorch checkpoint, is it complete? {error!r}") from error


def _read_tensors(state: Any, read_storage: ReadStorage) -> dict[str, np.ndarray]:
    return {plain_name(name): _materialise(t, read_storage) for name, t in _find_state_dict(state).items()}


def _open_zip(archive: zipfile.ZipFile, num_bytes: int) -> tuple[Any, ReadStorage]:
    members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
    if "data.pkl" not in members:
        raise CapjaxError("a zip archive without data.pkl is no PyTorch checkpoint")
    # PyTorch stores its members as they are: together they are smaller than the file. Others could fill the memory.
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise CapjaxError("expected members that are stored uncompressed, as PyTorch does; save it again with PyTorch")
    if sum(info.file_size for info in archive.infolist()) > num_bytes:
        raise CapjaxError("its members claim to be larger than the whole file; get it again")
    order = ">" if "byteorder" in members and archive.read(members["byteorder"]) == b"big" else "<"

    @functools.cache
    def read_numbers(key: str, type_name: str) -> np.ndarray:
        return _numbers(archive.read(members[f"data/{key}"]), _STORAGE_DTYPES[type_name], order)

    def read_storage(storage: _Storage) -> np.ndarray:
        return read_numbers(storage.key, storage.type_name)[: storage.size]

    return _TensorUnpickler(io.BytesIO(archive.read(members["data.pkl"]))).load(), read_storage


def _open_legacy(stream: io.BytesIO) -> tuple[Any, ReadStorage]:
    if _TensorUnpickler(stream).load() != _LEGACY_MAGIC:
        raise CapjaxError("a pickle, but not one that PyTorch wrote")
    _protocol_version, system, state = (_TensorUnpickler(stream).load() for _ in range(3))
    order = "<" if system["little_endian"] else ">"
    found: dict[str, _Storage] = {}
    for tensor in _find_state_dict(state).values():
        found[tensor.storage.key] = tensor.storage
    arrays = {}
    for key in _TensorUnpickler(stream).load():
        if not isinstance(key, str):
            raise ValueError("a storage whose key is no text")
        (size,) = _numbers(stream.read(8), np.dtype(np.int64), order)
        dtype = _STORAGE_DTYPES[found[key].type_name]
        arrays[key] = _numbers(stream.read(max(0, int(size)) * dtype.itemsize), dtype, order)
        if len(arrays[key]) != size:
            raise EOFError(f"{len(arrays[key])} of {size} numbers of a storage")
    return state, lambda storage: arrays[storage.key]


def _numbers(content: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype.newbyteorder(order), len(content) // dtype.itemsize).astype(dtype, copy=False)


def _find_state_dict(state: Any) -> dict[str, _Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, _Tensor) for value in state.values()):
        raise CapjaxError("expected a state dict, names to tensors; save model.state_dict() alone")
    return dict(state)


def plain_name(name: str) -> str:
    """Take off the prefix that DataParallel puts before the names of tensors."""
    return name.removeprefix("module.")


def _materialise(tensor: _Tensor, read_storage: ReadStorage) -> np.ndarray:
    storage = read_storage(tensor.storage)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, storage.dtype)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or min((*tensor.shape, *tensor.strides, 0)) < 0 or last >= len(storage):
        raise CapjaxError(f"a tensor of shape {tensor.shape} reaches beyond its storage of {len(storage)} numbers")
    if math.prod(tensor.shape) > len(storage):
        raise CapjaxError(f"a tensor of shape {tensor.shape} repeats the {len(storage)} numbers of its storage")
    strides = tuple(stride * storage.itemsize for stride in tensor.strides)
    # Tensors that share a storage go on sharing it.
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
