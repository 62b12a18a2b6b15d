"""From encoded image bytes to the square uint8 array that an encoder sees.

Decoding accepts whatever Pillow reads and always gives RGB; preprocessing crops and resizes on the host. Scaling to
[-1, 1] or by mean and deviation happens on the device, inside the encoder: batches carry uint8.
"""

import dataclasses
import io
import struct
import warnings
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from capjax.errors import CapjaxError

MAX_PIXELS = 200_000_000
MIN_SIDE = 8

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

# What the decoders of Pillow raise on damaged files.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)


class ImageError(CapjaxError):
    """An image that cannot be used.

    Attributes:
        kind: "unreadable", "truncated", "too large" or "too small".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


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

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Rebuild from `to_dict`.

        Raises:
            CapjaxError: if a field is unknown or has a value that does not exist.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise CapjaxError(f"preprocessing has the fields {', '.join(sorted(known))}, got {', '.join(unknown)}")
        return cls(**fields)


def open_image(data: bytes) -> Image.Image:
    """Read the header of an encoded image and refuse absurd sizes before any pixel is decoded.

    Args:
        data: an encoded image, any format that Pillow reads; HEIC where pillow-heif is installed.

    Returns:
        The image, its pixels not yet loaded, at its first frame.

    Raises:
        ImageError: if it is no image, has more than `MAX_PIXELS` pixels or a side below `MIN_SIDE`.
    """
    if not data:
        raise ImageError("unreadable", "expected an image, got an empty file")
    try:
        image = _open(data)
    except UnidentifiedImageError:
        raise ImageError("unreadable", f"expected an image (JPEG, PNG, WebP, GIF, …), got {_describe(data)}") from None
    except Image.DecompressionBombError as error:
        pixels = "".join(ch for ch in str(error).split("pixels")[0] if ch.isdigit())
        raise ImageError(
            "too large",
            f"expected an image of at most {MAX_PIXELS // 10**6} megapixels, got one of {int(pixels) // 10**6}",
        ) from None
    except _DECODER_ERRORS as error:
        raise _damaged(error) from None
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError("too small", f"expected at least {MIN_SIDE}×{MIN_SIDE} pixels, got {width}×{height}")
    return image


def load_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image to upright 8-bit RGB, transparency on white.

    Raises:
        ImageError: if the pixels are truncated or damaged.
    """
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            # Greyscale with 16 bits: keep the upper 8, where Pillow would clip at 255.
            return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except _DECODER_ERRORS as error:
        raise _damaged(error) from None


def decode_image(data: bytes, target_size: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image of any kind to upright RGB.

    Greyscale, CMYK, palette and 16-bit images become 8-bit RGB, transparency goes on white, EXIF rotation is applied,
    and of an animation the first frame is taken.

    Args:
        data: the encoded image.
        target_size: side in pixels of the square wanted in the end. Large JPEG files are then decoded at 1/2, 1/4 or
            1/8 of their size, though never below twice the target, so that the later resize still averages.

    Returns:
        The pixels, uint8 [H, W, 3].

    Raises:
        ImageError: a `CapjaxError` with a `kind`: unreadable, truncated, too large, too small.
    """
    image = open_image(data)
    if target_size is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (2 * target_size, 2 * target_size))
    return np.asarray(load_rgb(image))


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


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp":
            raise
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ImageError("unreadable", "reading HEIC images needs the package pillow-heif") from None
        register_heif_opener()
        return Image.open(io.BytesIO(data))


def _damaged(error: Exception) -> ImageError:
    kind = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "unreadable"
    return ImageError(kind, f"expected a whole image, got a damaged one ({error})")


def _describe(data: bytes) -> str:
    start = data[:200].lstrip()
    if start.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    return f"{len(data):,} bytes that start with {data[:8]!r}"
