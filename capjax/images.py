"""From image files to the square uint8 array that an encoder sees, and to thumbnails for people.

Decoding accepts whatever Pillow reads, except PostScript and what may contain it, and always gives RGB; preprocessing
crops and resizes on the host. Scaling to [-1, 1] or by mean and deviation happens on the device, inside the encoder:
batches carry uint8. An image that cannot be used ends in an `ImageError`, whatever is wrong with it.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from capjax.errors import CapjaxError

MAX_PIXELS = 200_000_000
MIN_SIDE = 8
MAX_FILE_BYTES = 256_000_000
"""Encoded photographs are far smaller; a larger file fills the memory before anybody sees that it is no photograph."""

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .heic .heif .avif .ppm .pgm .jp2".split()
)

# Pillow refuses an image above twice this number when it opens it, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF data is common and harmless: Pillow then treats the image as upright.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
CROPS = ("center", "none")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
"""What an HEIC file calls itself behind `ftyp`, as videos do as well (ISO/IEC 23008-12, annex B and section 10)."""
THUMBNAIL_SIZE = 224
"""Longest side in pixels: about 8 kB a photo, so that a page of 1,000 stays near 10 MB."""


class ImageError(CapjaxError):
    """An image that cannot be used.

    Attributes:
        kind: "unreadable", "truncated", "too large" or "too small".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.kind, str(self))  # it comes out of worker processes


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to a decoded image before the encoder.

    Attributes:
        image_size: side S of the square output, in pixels.
        crop: "center" cuts the largest centred square; "none" squeezes the whole image into the square.
        resize: filter of the antialiased resize, one of `RESAMPLING`.
    """

    image_size: int = 299
    crop: str = "center"
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise CapjaxError(f"preprocessing image_size must be positive, got {self.image_size}")
        if self.crop not in CROPS:
            raise CapjaxError(f"preprocessing crop must be one of {', '.join(CROPS)}, got {self.crop!r}")
        if self.resize not in RESAMPLING:
            raise CapjaxError(f"preprocessing resize must be one of {', '.join(RESAMPLING)}, got {self.resize!r}")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a JSON-ready dictionary."""
        return dataclasses.asdict(self)


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the image files in a folder and below, sorted; hidden files and folders are passed over.

    Links to folders are followed, but each folder is listed once, also where a link leads back to it. A folder that
    cannot be listed stands for what is in it: whoever reads it as an image is told why.
    """
    found: list[pathlib.Path] = []
    seen: set[str] = set()
    starts = [folder]

    def keep_in_sight(error: OSError) -> None:
        found.append(pathlib.Path(error.filename or start))

    # Links are followed after all that lies in the folder itself, so that a file keeps the name without the link.
    for start in starts:
        for parent, subfolders, files in os.walk(start, onerror=keep_in_sight):
            real = os.path.realpath(parent)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            paths = [pathlib.Path(parent, name) for name in subfolders]
            starts += filter(os.path.islink, paths)
            found += [pathlib.Path(parent, name) for name in files if is_image_name(name)]
    return sorted(found)


def is_image_name(name: str) -> bool:
    """Tell whether a name is that of an image file, by its suffix; those of hidden files are not."""
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES


def read_image_file(path: pathlib.Path) -> bytes:
    """Read an encoded image of at most `MAX_FILE_BYTES`.

    Raises:
        ImageError: if it is larger or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("unreadable", "expected an image file, got a pipe or a device")
            num_bytes = status.st_size
            check_file_size(num_bytes)
            return file.read(num_bytes)
    except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ImageError("unreadable", f"expected a readable image file, got {reason}") from None


def photo_id(content: bytes) -> int:
    """Return the id of a photo that no dataset has numbered, 32 bits of its file's SHA-256: samples follow from it."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4])


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe without anybody at its other end as well, for whom `open` would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def check_file_size(num_bytes: int) -> None:
    """Refuse a file of more than `MAX_FILE_BYTES`.

    Raises:
        ImageError: of the kind "too large".
    """
    if num_bytes > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 10**6} MB"
        raise ImageError("too large", f"expected an image file of at most {limit}, got {num_bytes / 1e6:,.0f} MB")


def open_image(data: bytes) -> Image.Image:
    """Read the header of an encoded image and refuse absurd sizes before any pixel is decoded.

    Args:
        data: an encoded image, any format that Pillow reads but PostScript and IPTC; HEIC where pillow-heif
            is installed.

    Returns:
        The image, its pixels not yet loaded, at its first frame.

    Raises:
        ImageError: if it is no image, has more than `MAX_PIXELS` pixels or a side below `MIN_SIDE`.
    """
    if not data:
        raise ImageError("unreadable", "expected an image, got an empty file")
    with image_errors():
        try:
            image = _open(data)
        except UnidentifiedImageError:
            raise ImageError(
                "unreadable", f"expected an image (JPEG, PNG, WebP, GIF, …), got {_describe(data)}"
            ) from None
        _check_sides(image)
        return image


def load_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image to upright 8-bit RGB, transparency on white.

    Raises:
        ImageError: if the pixels are truncated or damaged.
    """
    with image_errors():
        image.load()
        # Some formats hold images within the image, of sizes that the header outside does not tell.
        _check_sides(image)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(_in_eight_bits(np.asarray(image))).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _in_eight_bits(grey: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    """Bring greyscale of more bits, or of shares, to 0 to 255, where Pillow would clip: the upper eight bits."""
    slack = 1
    if grey.dtype.kind == "f":
        slack = 2  # a filter may have led the numbers beyond their range
        grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
        if grey.max() <= slack:  # shares
            grey = (255 * grey).clip(0, 255)
    most = 2.0**16 - 1 if grey.dtype.itemsize == 2 else float(grey.max())
    num_bits = next(bits for bits in range(8, 137, 8) if most <= slack * (2.0**bits - 1))
    grey = grey // 2 ** (num_bits - 8) if num_bits > 8 else grey
    return grey.clip(0, 255).astype(np.uint8)


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Turn whatever Pillow raises on an image into an `ImageError`.

    Its several dozen decoders, and the libraries below them, raise errors of every type: a list of them is never whole.

    Raises:
        ImageError: in place of any other error.
    """
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        pixels = "".join(ch for ch in str(error).split("pixels")[0] if ch.isdigit())
        raise ImageError(
            "too large",
            f"expected an image of at most {MAX_PIXELS // 10**6} megapixels, got one of {int(pixels or 0) // 10**6}",
        ) from None
    except MemoryError:
        raise ImageError("too large", "expected an image that fits into the memory, got a larger one") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "truncated" if "truncated" in reason.lower() or isinstance(error, EOFError) else "unreadable"
        raise ImageError(kind, f"expected a whole image, got a damaged one ({reason})") from None


def decode_image(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image of any kind to upright RGB.

    Greyscale, CMYK, palette and 16-bit images become 8-bit RGB, transparency goes on white, EXIF rotation is applied,
    and of an animation the first frame is taken.

    Args:
        data: the encoded image.

    Returns:
        The pixels, uint8 [H, W, 3].

    Raises:
        ImageError: a `CapjaxError` with a `kind`: unreadable, truncated, too large, too small.
    """
    return np.asarray(load_rgb(open_image(data)))


def preprocess(image: UInt8[np.ndarray, "H W 3"], preprocessing: Preprocessing) -> UInt8[np.ndarray, "S S 3"]:
    """Crop an image to a square and resize it, antialiased.

    Args:
        image: uint8 [H, W, 3].
        preprocessing: size, crop and filter.

    Returns:
        uint8 [S, S, 3] with S = `preprocessing.image_size`.
    """
    height, width = image.shape[:2]
    if preprocessing.crop == "center":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    size = (preprocessing.image_size, preprocessing.image_size)
    return np.asarray(Image.fromarray(image).resize(size, RESAMPLING[preprocessing.resize]))


def small_picture(data: bytes, size: int) -> Image.Image:
    """Decode an image to look at: upright, RGB on white, no larger than `size` pixels on its longest side.

    Raises:
        ImageError: as `decode_image` does.
    """
    image = open_image(data)
    with image_errors():
        # A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size: faster, and good enough for the eye alone.
        image.draft(None, (2 * size, 2 * size))
        picture = load_rgb(image)
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        return picture


def thumbnail(data: bytes, size: int = THUMBNAIL_SIZE) -> bytes:
    """Turn an encoded image into a JPEG of at most `size` pixels on its longest side; small JPEGs stay as they are.

    Raises:
        ImageError: as `decode_image` does.
    """
    image = open_image(data)
    if image.format == "JPEG" and image.mode in ("RGB", "L") and max(image.size) <= size:
        return data
    buffer = io.BytesIO()
    small_picture(data, size).save(buffer, "JPEG", quality=75, optimize=True)
    return buffer.getvalue()


def _check_sides(image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError("too small", f"expected at least {MIN_SIDE}×{MIN_SIDE} pixels, got {width}×{height}")


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
            raise
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ImageError("unreadable", "reading HEIC images needs the package pillow-heif") from None
        register_heif_opener()
        return Image.open(io.BytesIO(data), formats=_formats())


def _formats() -> list[str]:
    """List the formats that Pillow reads by itself: for PostScript it would start Ghostscript, on anybody's file.

    An IPTC file may hold another of any format.
    """
    Image.init()
    return [name for name in Image.ID if name not in ("EPS", "IPTC")]


def _describe(data: bytes) -> str:
    start = data[:200].lstrip()
    if start.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    return f"{len(data):,} bytes that start with {data[:8]!r}"
