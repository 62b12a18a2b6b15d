"""Where the images of a source lie: a folder, or a zip that is read without unpacking it."""

import os
import pathlib
import threading
import zipfile
from typing import NamedTuple, Protocol

from capjax.errors import CapjaxError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .heic .heif .avif .ppm .pgm .jp2".split()
)


class ImageStore(Protocol):
    """A place that holds image files by name."""

    def names(self) -> list[str]:
        """List the image files, relative paths with forward slashes, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            OSError: if that fails.
        """
        ...

    def size(self, name: str) -> int:
        """Give the size of a file in bytes."""
        ...

    def fingerprint(self, name: str) -> str:
        """Give what changes when the file does."""
        ...


class ImageFile(NamedTuple):
    """One image file in its store."""

    store: ImageStore
    name: str

    def read(self) -> bytes:
        """Read the file.

        Raises:
            OSError: if that fails.
        """
        return self.store.read(self.name)


class ImageFolder:
    """Image files in a directory and below."""

    def __init__(self, path: pathlib.Path):
        """Take the directory `path`."""
        self._path = path

    def names(self) -> list[str]:
        """List the image files; hidden folders are passed over."""
        found = []
        for folder, subfolders, files in os.walk(self._path, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = pathlib.PurePath(folder).relative_to(self._path)
            found += [(relative / name).as_posix() for name in files if _is_image(name)]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self._path / name).read_bytes()

    def size(self, name: str) -> int:
        """Give the size of a file in bytes; 0 if it cannot be told."""
        try:
            return (self._path / name).stat().st_size
        except OSError:
            return 0

    def fingerprint(self, name: str) -> str:
        """Combine size and time of change."""
        try:
            status = (self._path / name).stat()
        except OSError:
            return "unreadable"
        return f"{status.st_size}-{status.st_mtime_ns}"


class ImageZip:
    """Image files in a zip archive; safe to read from several threads."""

    def __init__(self, path: pathlib.Path):
        """Open the archive `path`.

        Raises:
            CapjaxError: if it is no zip, or an incomplete one.
        """
        self._zip = open_zip(path)
        self._members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """List the image files."""
        return sorted(name for name in self._members if _is_image(name) and not name.startswith("__MACOSX/"))

    def read(self, name: str) -> bytes:
        """Read a file and check its CRC."""
        try:
            with self._lock:
                return self._zip.read(name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(f"damaged in the archive: {error}") from error

    def size(self, name: str) -> int:
        """Give the size of a file in bytes."""
        return self._members[name].file_size

    def fingerprint(self, name: str) -> str:
        """Combine size and CRC."""
        info = self._members[name]
        return f"{info.file_size}-{info.CRC:08x}"


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        CapjaxError: if it is no zip, or an incomplete one.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CapjaxError(f"expected a complete zip archive at {path}, got: {error}; download it again") from None


def open_images(path: pathlib.Path) -> ImageStore:
    """Open a folder or a zip of images.

    Raises:
        CapjaxError: if there is neither.
    """
    if path.is_dir():
        return ImageFolder(path)
    if path.is_file():
        return ImageZip(path)
    raise CapjaxError(f"expected a folder or a zip of images at {path}, there is none")


def index_by_base_name(stores: list[ImageStore]) -> dict[str, ImageFile]:
    """Find the images of official layouts, whose captions name files without folders."""
    return {name.rsplit("/", 1)[-1]: ImageFile(store, name) for store in stores for name in store.names()}


def _is_image(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES
