"""What identifies the images of a dataset: per split, the SHA-256 over ids and encoded images, in record order."""

import hashlib
import json
import pathlib
import re

from capjax.errors import CapjaxError

FILE_NAME = "fingerprint.json"


class ImagesDigest:
    """Takes in the images of a split, one after the other."""

    def __init__(self) -> None:
        """Start without images."""
        self._sha256 = hashlib.sha256()

    def add(self, image_id: int, image: bytes) -> None:
        """Take in the next image, as it is stored."""
        self._sha256.update(image_id.to_bytes(8, "little", signed=True))
        # With its length, so that bytes cannot move from one image to the next unnoticed.
        self._sha256.update(len(image).to_bytes(8, "little"))
        self._sha256.update(image)

    def hexdigest(self) -> str:
        """Give the digest of all images so far."""
        return self._sha256.hexdigest()


def write_fingerprint(directory: pathlib.Path, sha256_of_splits: dict[str, str]) -> None:
    """Store the digests of splits beside their captions."""
    (directory / FILE_NAME).write_text(json.dumps(sha256_of_splits, indent=1) + "\n", encoding="utf-8")


def read_fingerprint(directory: pathlib.Path, split: str) -> str | None:
    """Read the digest of a split; None for a dataset that was prepared before there were any.

    Raises:
        CapjaxError: if the file is damaged.
    """
    path = directory / FILE_NAME
    try:
        sha256 = json.loads(path.read_text(encoding="utf-8"))[split]
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} for {split}")
        return sha256
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CapjaxError(f"expected a SHA-256 of each split in {path}, got {error!r}") from None
