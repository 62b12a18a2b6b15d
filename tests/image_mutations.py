"""Encoded images in every format that Pillow writes here, and seeded damage to them."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, features

from tests.source_layouts import encode, photo

_FORMATS = "JPEG PNG GIF BMP DIB TIFF ICNS ICO PPM TGA PCX SGI DDS QOI MPO XBM MSP SPIDER BLP".split()
_OPTIONAL = {"webp": "WEBP", "avif": "AVIF", "jpg_2000": "JPEG2000"}
_MODES = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P"}


def encoded_images() -> dict[str, bytes]:
    """Encode a small picture in every format, in some of them in several ways."""
    picture = photo(3, (32, 32))
    formats = [*_FORMATS, *(name for feature, name in _OPTIONAL.items() if features.check(feature))]
    images = {name: encode(picture.convert(_MODES.get(name, "RGB")), name) for name in formats}
    frames = {"save_all": True, "append_images": [photo(4, (32, 32))]}
    exif = Image.Exif()
    exif[0x0112] = 6
    return images | {
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


def mutations(images: dict[str, bytes], number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damage the images in turn: bits flipped, bytes overwritten, cut short, pieces left out, repeated or exchanged."""
    rng = np.random.default_rng(seed)
    names = list(images)
    for i in range(number):
        name = names[i % len(names)]
        data = bytearray(images[name])
        # Half of the damage goes to the header, where it does most.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
        start, length = int(rng.integers(reach)), int(rng.integers(1, 33))
        match rng.integers(6):
            case 0:
                for at in rng.integers(reach, size=rng.integers(1, 9)):
                    data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[start : start + 4] = bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))] * 4)
            case 2:
                del data[start:]
            case 3:
                del data[start : start + length]
            case 4:
                data[start:start] = data[start : start + length]
            case 5:
                other = images[names[int(rng.integers(len(names)))]]
                data[start:] = other[min(start, len(other) - 1) :]
        yield f"{name}, variant {i} of seed {seed}", bytes(data)
