"""Downloads published weights: resumed where they stopped, verified before anybody can use them, kept in a cache.

The bytes go to `NAME.part`. Only after its MD5 has been found equal to the published one does the file get its name, so
a file with that name is complete and right.
"""

import hashlib
import os
import pathlib
import time
from typing import NamedTuple

import requests
from tqdm import tqdm

from capjax.errors import CapjaxError


class PublishedFile(NamedTuple):
    """A file on the web and the MD5 that its publisher states."""

    url: str
    md5: str


_KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"

# URLs and hashes as Keras' own source pins them (keras/src/applications/inception_v3.py).
PUBLISHED = {
    "keras": PublishedFile(
        f"{_KERAS_APPLICATIONS}inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "keras_top": PublishedFile(
        f"{_KERAS_APPLICATIONS}inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
        "9a0d58056eeedaa3f26cb7ebd46da564",
    ),
}

_CHUNK_BYTES = 1 << 16
_TIMEOUT_SECONDS = (10, 60)  # to connect, between two reads


def default_cache_dir() -> pathlib.Path:
    """Return where weights are kept: $CAPJAX_CACHE/weights, or ~/.cache/capjax/weights."""
    root = os.environ.get("CAPJAX_CACHE")
    return (pathlib.Path(root) if root else pathlib.Path.home() / ".cache" / "capjax") / "weights"


def file_md5(path: pathlib.Path) -> str:
    """Return the MD5 of a file as 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(
    published: PublishedFile, cache_dir: pathlib.Path, num_attempts: int = 6, pause_seconds: float = 1.0
) -> pathlib.Path:
    """Return the path of the verified file in `cache_dir`, downloading what is missing of it.

    Args:
        published: URL and MD5.
        cache_dir: created where absent; the file keeps the last part of the URL as its name.
        num_attempts: how often in a row a connection may fail without bringing a single byte.
        pause_seconds: wait after the first failure; doubled after each further one.

    Raises:
        CapjaxError: the server refuses or stays away, the disk is full, or what arrived has another hash.
    """
    target = pathlib.Path(cache_dir) / published.url.rsplit("/", 1)[-1]
    partial = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if file_md5(target) == published.md5:
                return target
            target.unlink()
        failures = 0
        while True:
            size_before = _size(partial)
            try:
                _continue_download(published.url, partial)
                break
            except requests.RequestException as error:
                failures = 1 if _size(partial) > size_before else failures + 1
                if failures >= num_attempts:
                    raise CapjaxError(
                        f"cannot download {published.url}: {error}; run the command again to go on from "
                        f"{_size(partial):,} bytes"
                    ) from error
                time.sleep(pause_seconds * 2 ** (failures - 1))
        if (md5 := file_md5(partial)) != published.md5:
            partial.unlink()
            raise CapjaxError(
                f"{published.url} brought a file with MD5 {md5}, published is {published.md5}; it was deleted, "
                "run the command again and, if that repeats, suspect the network in between"
            )
        os.replace(partial, target)
    except OSError as error:
        raise CapjaxError(f"cannot store {target}: {error}") from error
    return target


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue_download(url: str, partial: pathlib.Path) -> None:
    """Append what is missing to `partial`; start over where the server does not serve ranges.

    Raises:
        requests.RequestException: worth another attempt.
        CapjaxError: the server's answer is final.
    """
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing lies beyond what is here: the hash will tell whether it is right
        if 400 <= response.status_code < 500 and response.status_code != requests.codes.too_many_requests:
            raise CapjaxError(f"{url} answered {response.status_code} {response.reason}; check the address")
        response.raise_for_status()
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        resumed = response.status_code == requests.codes.partial_content and continues
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        with (
            open(partial, "ab" if resumed else "wb") as file,
            tqdm(
                desc=partial.stem,
                initial=start,
                total=start + int(length) if length else None,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as progress,
        ):
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
