"""Encoded images in every format that Pillow reads here, and seeded damage to them."""

import importlib.util
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, features

from tests.damage import damaged_bytes
from tests.rare_images import rare_images
from tests.source_layouts import encode, photo

_FORMATS = "JPEG PNG GIF BMP DIB TIFF ICNS ICO PPM TGA PCX SGI DDS QOI MPO IM XBM MSP SPIDER BLP".split()
_OPTIONAL = {"webp": "WEBP", "avif": "AVIF", "jpg_2000": "JPEG2000"}
_MODES = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P"}


def encoded_images() -> dict[str, bytes]:
    """Encode a small picture in every format, in some of them in several ways."""
    picture = photo(3, (32, 32))
    heif = importlib.util.find_spec("pillow_heif")
    if heif:
        importlib.import_module("pillow_heif").register_heif_opener()
    formats = [
        *_FORMATS,
        *(name for feature, name in _OPTIONAL.items() if features.check(feature)),
        *(["HEIF"] if heif else []),
    ]
    images = {name: encode(picture.convert(_MODES.get(name, "RGB")), name) for name in formats}
    frames = {"save_all": True, "append_images": [photo(4, (32, 32))]}
    exif = Image.Exif()
    exif[0x0112] = 6
    return (
        images
        | rare_images()
        | {
            "JPEG, progressive and turned": encode(picture, "JPEG", progressive=True, exif=exif),
            "JPEG, CMYK": encode(picture.convert("CMYK"), "JPEG"),
            "PNG, palette": encode(picture.quantize(), "PNG", transparency=0),
            "PNG, 16 bits": encode(Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)), "PNG"),
            "PNG, animated": encode(picture, "PNG", **frames),
            "GIF, animated": encode(picture, "GIF", **frames),
            "WEBP, animated": encode(picture, "WEBP", **frames) if "WEBP" in images else images["GIF"],
            "TIFF, LZW": encode(picture, "TIFF", compression="tiff_lzw"),
            "TIFF, JPEG": encode(picture, "TIFF", compression="jpeg"),
            "TIFF, float": encode(picture.convert("F"), "TIFF"),
            "BMP, palette": encode(picture.quantize(), "BMP"),
            "TGA, RLE": encode(picture, "TGA", compression="tga_rle"),
            "ICO, BMP inside": encode(picture, "ICO", bitmap_format="bmp"),
        }
    )


def mutations(images: dict[str, bytes], number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damage the images in turn, see `tests.damage.damaged_bytes`."""
    names = list(images)
    for i in range(number):
        # A seed of its own for each, so that it can be made again without those before it.
        rng = random.Random(f"{seed}-{i}")
        name = names[i % len(names)]
        yield f"{name}, variant {i} of seed {seed}", damaged_bytes(images[name], images[rng.choice(names)], rng)
