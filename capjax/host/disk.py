"""Files on the disk: written whole or not at all, inside the folder they belong to, with room asked for before."""

import contextlib
import errno
import fcntl
import json
import lzma
import math
import os
import pathlib
import re
import secrets
import shutil
import struct
import tempfile
import time
import tokenize
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from capjax.errors import CapjaxError, causes

# Full, over quota, or more than the file system takes in one file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Seconds after which nobody is writing to a file any more that has not changed.
_ABANDONED = 3600

# What `zipfile` and the decompressors raise on damaged, encrypted and unknown archives.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError, RuntimeError)
# What `numpy.load` and a look into what it gives raise besides, on an .npz of another make or of absurd sizes.
NPZ_ERRORS = (*ZIP_ERRORS, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError)
NPZ_ERRORS += (SyntaxError, tokenize.TokenError)

_MOST_INFLATED = 100

_temporary_folders: weakref.WeakSet[tempfile.TemporaryDirectory] = weakref.WeakSet()

Piece = bytes | memoryview | str
"""What a file is made of; text is written in UTF-8."""


def check_inflated(path: str | os.PathLike[str]) -> None:
    """Refuse an archive that inflates to more than a hundred times its size, as numbers worth keeping never do.

    Raises:
        CapjaxError: if it claims to; its members are read up to what they claim.
        OSError, zipfile.BadZipFile: one of `ZIP_ERRORS`, if it is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(info.file_size for info in archive.infolist())
    if claimed > _MOST_INFLATED * (size := os.path.getsize(path)):
        raise CapjaxError(
            f"expected an archive that inflates to at most {_MOST_INFLATED} times its {size:,} bytes at {path}, it "
            f"claims {claimed:,}; save it again without compression"
        )


def write_atomically(path: str | os.PathLike[str], content: Piece | Iterable[Piece]) -> None:
    """Write a file, in one piece or many, through a temporary one beside it.

    It appears whole, and a failure leaves an earlier one. Processes that write the same file do not disturb each other;
    the last one wins. Missing folders are created. A link stays one, and what is no file, such as a pipe or /dev/null,
    is written into.

    Raises:
        CapjaxError: the folder cannot be written, or the disk is full.
    """
    path = pathlib.Path(path)
    if os.path.islink(path) and (os.path.isfile(path) or not os.path.exists(path)):
        path = pathlib.Path(os.path.realpath(path))
    is_special = os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") if is_special else open(temporary, "xb") as file:
            pieces = (content,) if isinstance(content, (bytes, memoryview, str)) else content
            file.writelines(_encoded(piece) for piece in pieces)
            file.flush()
            if is_special:
                return
            os.fsync(file.fileno())  # or the new name could outlive a power cut, and the content not
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise CapjaxError(f"cannot write {path}: {reason}; choose another place or make room") from error


def _encoded(piece: Piece) -> bytes | memoryview:
    r"""Return a piece as bytes; what UTF-8 lacks, as of names in another code, as \udcff, which JSON understands."""
    return piece.encode("utf-8", "backslashreplace") if isinstance(piece, str) else piece


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write values as JSON, all or nothing; see `write_atomically`."""
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def finite_or_none(number: float | None) -> float | None:
    """Return a number as JSON has it, which knows no infinity and no NaN: None in their place."""
    return number if number is not None and math.isfinite(number) else None


def check_writable(folder: pathlib.Path) -> None:
    """Make a folder, and write a file in it to see whether that can be done.

    Raises:
        CapjaxError: if it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise CapjaxError(f"cannot write to {folder}: {reason}; choose another place or make room") from None


def remove_leftovers(folder: pathlib.Path) -> None:
    """Remove what `write_atomically` left in a folder where its process was killed, once no other can be writing it."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process may do the same
            if re.fullmatch(r"\..*\.[0-9a-f]{8}\.tmp", path.name) and time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory:
    """Make a folder that goes with the object, or with `remove_temporary_folders`."""
    folder = tempfile.TemporaryDirectory(prefix=prefix)
    _temporary_folders.add(folder)
    return folder


def remove_temporary_folders() -> None:
    """Remove what is left, for a process that is to end without Python's own good-byes."""
    for folder in list(_temporary_folders):
        with contextlib.suppress(OSError):
            folder.cleanup()


def local_path(text: str) -> pathlib.Path:
    """Turn an argument into a path on a mounted file system, ~ into the home directory.

    Raises:
        CapjaxError: if it is the address of a bucket, which would silently become a local folder of that name.
    """
    if scheme := re.match(r"([a-z][a-z0-9+.-]*):/", text, re.IGNORECASE):
        raise CapjaxError(
            f"expected a folder on a mounted file system, got {text!r}; mount the bucket (gcsfuse for {scheme[1]}:) "
            "and name the folder"
        )
    return pathlib.Path(os.path.expanduser(text))


def home_folder(instead: str) -> pathlib.Path:
    """Return the home directory.

    Args:
        instead: the variable that names what is looked for in it.

    Raises:
        CapjaxError: if the user has none.
    """
    if (home := os.path.expanduser("~")) == "~":
        raise CapjaxError(f"expected a home directory, found none; set HOME or {instead}")
    return pathlib.Path(home)


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """Return the path of `name` in `folder`, or None if the name leads out of it, as `../x` and `/x` do.

    Links that the user put into the folder are the user's business.
    """
    normal = os.path.normpath(name)
    leads_out = os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir or "\0" in name
    return None if leads_out else folder / normal


@contextlib.contextmanager
def exclusive(path: pathlib.Path, refusal: str) -> Iterator[None]:
    """Hold a lock as long as the block runs; the system lifts it however the process ends.

    Args:
        path: the lock's file, made where absent; it stays.
        refusal: what to say to a second process.

    Raises:
        CapjaxError: another process holds the lock, the file cannot be made, or the file system knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")
    except OSError as error:
        raise CapjaxError(f"cannot write to {path.parent}: {error.strerror}; choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapjaxError(refusal) from None
        except OSError as error:
            raise CapjaxError(
                f"expected a file system that can lock {path}, it cannot ({error.strerror}); choose a folder on another"
            ) from None
        yield


def check_room(folder: pathlib.Path, needed_bytes: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        CapjaxError: if there is less room than `needed_bytes` where `folder` is or will be.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise CapjaxError(
            f"expected {needed_bytes / 1e9:.2f} GB of room in {folder} for {what}, there are {free / 1e9:.2f} GB; "
            "free some or choose another folder"
        )


@contextlib.contextmanager
def clear_disk_errors(target: pathlib.Path) -> Iterator[None]:
    """Turn a full or read-only disk, however deep the error comes from, into one line.

    Raises:
        CapjaxError: in place of such an error while `target` is written.
    """
    try:
        yield
    except CapjaxError:
        raise
    except Exception as error:
        for cause in causes(error):
            number = cause.errno if isinstance(cause, OSError) else None
            # The array_record library and TFDS raise errors of their own with the message of the system.
            if number in NO_ROOM or "No space left on device" in str(cause) or "File too large" in str(cause):
                raise CapjaxError(
                    f"expected room to write {target}, the disk is full; free some and run the same command again"
                ) from error
            if number in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise CapjaxError(f"expected to write {target}, may not ({cause}); choose another folder") from error
        raise
