"""Where the images of a source lie: a folder, or a zip that is read without unpacking it."""

import contextlib
import pathlib
import threading
import zipfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from capjax.errors import CapjaxError
from capjax.host.disk import ZIP_ERRORS
from capjax.images import ImageError, check_file_size, is_image_name, list_images, read_image_file


@runtime_checkable
class ImageStore(Protocol):
    """A place that holds image files by name.

    Attributes:
        path: where it lies.
    """

    path: pathlib.Path

    def names(self) -> list[str]:
        """List the image files, relative paths with forward slashes, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            ImageError: if that fails, or the file is too large to be an image.
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
            ImageError: if that fails, or the file is too large to be an image.
        """
        return self.store.read(self.name)


class ImageFolder:
    """Image files in a directory and below."""

    def __init__(self, path: pathlib.Path):
        """Take the directory `path`."""
        self.path = path

    def names(self) -> list[str]:
        """List the image files, as `list_images` does."""
        return sorted(path.relative_to(self.path).as_posix() for path in list_images(self.path))

    def read(self, name: str) -> bytes:
        """Read a file."""
        return read_image_file(self.path / name)

    def size(self, name: str) -> int:
        """Give the size of a file in bytes; 0 if it cannot be told."""
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return 0

    def fingerprint(self, name: str) -> str:
        """Combine size and time of change."""
        try:
            status = (self.path / name).stat()
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
        self.path = path
        self._zip = open_zip(path)
        self._members = {name: info for info in self._zip.infolist() if not (name := _member_name(info)).endswith("/")}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """List the image files."""
        return sorted(name for name in self._members if is_image_name(name) and not name.startswith("__MACOSX/"))

    def read(self, name: str) -> bytes:
        """Read a file and check its CRC."""
        info = self._members[name]
        check_file_size(info.file_size)
        try:
            with self._lock:
                return read_member(self._zip, info)
        except CapjaxError as error:
            raise ImageError("unreadable", str(error)) from None

    def size(self, name: str) -> int:
        """Give the size of a file in bytes."""
        return self._members[name].file_size

    def fingerprint(self, name: str) -> str:
        """Combine size and CRC."""
        info = self._members[name]
        return f"{info.file_size}-{info.CRC:08x}"


_NAME_IS_UTF8 = 0x800


def _member_name(info: zipfile.ZipInfo) -> str:
    """Return a member's path with the separators that the format asks for, its accents as they were meant.

    Archives of macOS' Finder have names in UTF-8 without saying so, which are read as those of MS-DOS then.
    """
    name = info.filename.replace("\\", "/")
    if not info.flag_bits & _NAME_IS_UTF8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        CapjaxError: if it is no zip, or an incomplete one.
    """
    try:
        return zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        remedy = "download it again" if path.suffix.lower() == ".zip" else "unpack it, or pack it as a zip"
        raise CapjaxError(f"expected a complete zip archive at {path}, got: {error}; {remedy}") from None


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a member of an archive and check its CRC.

    No more is inflated than its header announces, which the caller bounds: `ZipFile.read` inflates everything first.

    Raises:
        CapjaxError: if it is damaged, or compressed by a method of which `zipfile` inflates whole blocks at once.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CapjaxError(
            f"expected {info.filename} stored or deflated in the archive, got compression method {info.compress_type}; "
            "pack it again without options"
        )
    try:
        with archive.open(info) as member:
            return member.read(info.file_size)
    except ZIP_ERRORS as error:
        raise CapjaxError(f"expected {info.filename} undamaged in the archive, got {error}") from None


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


def base_name(path: str) -> str:
    """Return the last part of a path, by which captions of official layouts name files."""
    return path.rsplit("/", 1)[-1]


def find_images(stores: Iterable[ImageStore], key: Callable[[str], str] = str) -> dict[str, list[ImageFile]]:
    """Find the images of some places by what `key` makes of their paths there."""
    images: dict[str, list[ImageFile]] = {}
    for store in stores:
        for name in store.names():
            images.setdefault(key(name), []).append(ImageFile(store, name))
    return images


def _same_file(one: ImageFile, other: ImageFile) -> bool:
    if one.store.size(one.name) != other.store.size(other.name):
        return False
    try:
        return one.read() == other.read()
    except ImageError:  # that is told when the first is read
        return True


def one_of_each(images: Mapping[str, Sequence[ImageFile]], captioned: Container[str]) -> dict[str, ImageFile]:
    """Take one image of each name, the first.

    Args:
        images: by the names that captions use.
        captioned: those that they do use.

    Raises:
        CapjaxError: if files of other content have one of these names.
    """
    for name, (first, *others) in images.items():
        for file in others if name in captioned else ():
            if not _same_file(first, file):
                raise CapjaxError(
                    f"expected one image {name}, {first.store.path / first.name} and {file.store.path / file.name} "
                    "differ; move those that are not meant elsewhere"
                )
    return {name: first for name, (first, *_) in images.items()}
