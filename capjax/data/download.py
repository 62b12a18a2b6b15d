"""Downloads that resume, are verified before use and appear whole or not at all."""

import hashlib
import http.client
import os
import pathlib
import time
import urllib.error
import urllib.request
from typing import NamedTuple

from tqdm import tqdm

from capjax.data.disk import check_room
from capjax.errors import CapjaxError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


class Download(NamedTuple):
    """A file on the web, pinned.

    Attributes:
        url: where it is.
        size: in bytes.
        sha256: in hexadecimal.
    """

    url: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


def fetch(download: Download, folder: pathlib.Path, num_attempts: int = 6, wait_seconds: float = 2.0) -> pathlib.Path:
    """Download a file unless it is there already, and verify size and hash before it gets its name.

    What an interrupted download left, in this run or an earlier one, is continued.

    Args:
        download: what to get.
        folder: where to put it.
        num_attempts: how often to try again after a broken connection without progress.
        wait_seconds: before the second attempt; doubles each time.

    Returns:
        The path of the complete file.

    Raises:
        CapjaxError: if the disk is too small, the server cannot be reached, or the file is not the pinned one.
    """
    target = folder / download.file_name
    if target.exists() and target.stat().st_size == download.size:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    check_room(folder, download.size - _size(partial), download.file_name)
    attempt = 0
    while _size(partial) < download.size:
        before = _size(partial)
        try:
            _continue(download, partial)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise CapjaxError(f"expected to download {download.url}, the server answered: {error}") from None
            attempt = 0 if _size(partial) > before else attempt + 1
            if attempt >= num_attempts:
                reason = getattr(error, "reason", error)
                raise CapjaxError(
                    f"expected to download {download.url}, the connection failed: {reason}; "
                    "run the same command again to continue"
                ) from None
            time.sleep(wait_seconds * 2**attempt)
    _verify(download, partial)
    os.replace(partial, target)
    return target


def _continue(download: Download, partial: pathlib.Path) -> None:
    start = _size(partial)
    request = urllib.request.Request(download.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        if response.status != 206:
            # The server sends all of it, whatever was asked for.
            start = 0
        length = response.headers.get("Content-Length")
        if length and start + int(length) != download.size:
            raise CapjaxError(
                f"expected {download.size:,} bytes at {download.url}, the server offers {start + int(length):,}"
            )
        with (
            open(partial, "r+b" if start else "wb") as file,
            tqdm(
                desc=download.file_name, total=download.size, initial=start, unit="B", unit_scale=True, disable=None
            ) as progress,
        ):
            file.seek(start)
            file.truncate()
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if _size(partial) < download.size:
        raise ConnectionError("the transfer ended early")


def _verify(download: Download, partial: pathlib.Path) -> None:
    digest = hashlib.sha256()
    with (
        open(partial, "rb") as file,
        tqdm(desc="verifying", total=download.size, unit="B", unit_scale=True, disable=None) as progress,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    if _size(partial) != download.size or digest.hexdigest() != download.sha256:
        found = f"{_size(partial):,} bytes with SHA-256 {digest.hexdigest()}"
        partial.unlink()
        raise CapjaxError(
            f"expected {download.file_name} of {download.size:,} bytes with SHA-256 {download.sha256}, got {found}; "
            "it was deleted, run the same command again"
        )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
