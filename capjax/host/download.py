"""Downloads that resume, are verified before anybody can use them, and appear whole or not at all.

The bytes go to `NAME.part`, which one process at a time has locked. Only after their digest has been found equal to the
published one does the file get its name, so a file with that name is complete and right. Which files there are is said
where they are used: `data.coco`, `pretrained.published`.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import requests
from tqdm import tqdm

from capjax.errors import CapjaxError
from capjax.host.disk import check_room

_CHUNK_BYTES = 1 << 16  # also the most that a broken connection loses
_TIMEOUT_SECONDS = (10, 60)  # to connect, between two reads
# A file that is there already and above this size is known by its size alone: to hash it again takes minutes.
_MOST_BYTES_HASHED_AGAIN = 1_000_000_000


class RemoteFile(NamedTuple):
    """A file on the web, pinned.

    Attributes:
        url: where it is.
        digest: what its publisher states, "sha256:…" or "md5:…" in lower-case hexadecimal.
        size: in bytes; None if the publisher does not say.
    """

    url: str
    digest: str
    size: int | None = None

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def fetch(file: RemoteFile, folder: pathlib.Path, num_attempts: int = 6, pause_seconds: float = 1.0) -> pathlib.Path:
    """Return the path of the verified file in `folder`, downloading what is missing of it.

    What an interrupted download left, in this run or an earlier one, is continued. A file of that name which is not
    the published one is replaced.

    Args:
        file: what to get.
        folder: created where absent.
        num_attempts: how often in a row a connection may fail without getting any further.
        pause_seconds: wait after the first failure; doubled after each further one.

    Raises:
        CapjaxError: the server refuses or stays away, the disk is too small, or what arrived is another file.
    """
    target = pathlib.Path(folder) / file.file_name
    partial = target.with_name(target.name + ".part")
    try:
        if _is_complete(file, target):
            return target
        if file.size is not None:
            check_room(folder, file.size - _size(partial), file.file_name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            if _is_complete(file, target):  # by the process that had the lock before
                return target
            _download(file, partial, num_attempts, pause_seconds)
            if (found := _digest_of(partial, file.digest)) != file.digest:
                os.truncate(partial, 0)
                raise CapjaxError(
                    f"expected {file.url} with {file.digest}, got {found}; it was deleted, run the command again and, "
                    "if that repeats, suspect the network in between"
                )
            os.replace(partial, target)
    except OSError as error:
        raise CapjaxError(f"cannot store {target}: {error}") from error
    return target


@contextlib.contextmanager
def _locked(partial: pathlib.Path) -> Iterator[None]:
    """Have `partial`, created where absent, for this process alone; it goes in the end if it is empty.

    The lock is on the open file, so that it ends with the process, however that ends.
    """
    while True:
        with open(partial, "ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that downloads {partial.with_suffix('')}", file=sys.stderr)
                fcntl.flock(stream, fcntl.LOCK_EX)
            # Whoever had the lock before may have given the file its name, or removed it.
            if not _is_at(partial, stream):
                continue
            try:
                yield
                return
            finally:
                if _is_at(partial, stream) and not _size(partial):
                    partial.unlink()


def _is_at(path: pathlib.Path, stream: BinaryIO) -> bool:
    """Tell whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _is_complete(file: RemoteFile, target: pathlib.Path) -> bool:
    if not target.is_file() or file.size not in (None, _size(target)):
        return False
    is_large = file.size is not None and file.size > _MOST_BYTES_HASHED_AGAIN
    return is_large or _digest_of(target, file.digest) == file.digest


def _download(file: RemoteFile, partial: pathlib.Path, num_attempts: int, pause_seconds: float) -> None:
    """Bring `partial` to its full length, over as many connections as it takes."""
    failures, furthest = 0, _size(partial)
    while file.size is None or _size(partial) < file.size:
        try:
            _continue(file, partial)
            return
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # requests' way to say that the URL is none
                raise CapjaxError(f"cannot download {file.url}: {error}") from error
            failures = 1 if _size(partial) > furthest else failures + 1
            furthest = max(furthest, _size(partial))
            if failures >= num_attempts:
                # The reason inside is short, the errors around it repeat the address.
                reason = getattr(error.args[0] if error.args else None, "reason", error)
                raise CapjaxError(
                    f"cannot download {file.url}: {reason}; run the command again to go on from "
                    f"{_size(partial):,} bytes"
                ) from error
            time.sleep(pause_seconds * 2 ** (failures - 1))


def _continue(file: RemoteFile, partial: pathlib.Path) -> None:
    """Append what is missing to `partial`; start over where the server does not serve ranges.

    Raises:
        requests.RequestException: worth another attempt.
        CapjaxError: the server's answer is final.
    """
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        status = response.status_code
        if have and status == requests.codes.requested_range_not_satisfiable:
            return  # nothing lies beyond what is here: the digest will tell whether it is right
        if status >= 500 or status in (requests.codes.request_timeout, requests.codes.too_many_requests):
            response.raise_for_status()
        if status not in (requests.codes.ok, requests.codes.partial_content):
            raise CapjaxError(f"{file.url} answered {status} {response.reason}; check the address")
        start, total = _extent(response)
        if start not in (0, have):
            os.truncate(partial, 0)
            content_range = response.headers.get("Content-Range")
            raise requests.RequestException(f"asked for the bytes from {have} on, got Content-Range {content_range}")
        if total is not None and file.size not in (None, total):
            raise CapjaxError(f"expected {file.size:,} bytes at {file.url}, the server offers {total:,}")
        with (
            open(partial, "ab" if start else "wb") as stream,
            tqdm(desc=file.file_name, initial=start, total=total, unit="B", unit_scale=True, disable=None) as progress,
        ):
            for chunk in response.iter_content(_CHUNK_BYTES):
                stream.write(chunk)
                progress.update(len(chunk))
    if total is not None and _size(partial) < total:
        raise requests.ConnectionError(f"the transfer ended after {_size(partial):,} of {total:,} bytes")


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Return where in the file the body of an answer begins and the size of the whole file, -1 and None if not said."""
    if response.status_code == requests.codes.partial_content:
        match = re.fullmatch(r"bytes (\d+)-\d+/(?:(\d+)|\*)", response.headers.get("Content-Range", ""))
        return (int(match[1]), int(match[2]) if match[2] else None) if match else (-1, None)
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _digest_of(path: pathlib.Path, like: str) -> str:
    """Return the digest of a file, written as `like` and by the same algorithm."""
    algorithm = like.partition(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        open(path, "rb") as stream,
        tqdm(desc=f"verifying {path.name}", total=_size(path), unit="B", unit_scale=True, disable=None) as progress,
    ):
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            progress.update(len(chunk))
    return f"{algorithm}:{digest.hexdigest()}"


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
