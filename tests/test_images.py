"""Decoding of every kind of image, and preprocessing against a plain implementation of the triangle filter."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from capjax.errors import CapjaxError
from capjax.images import ImageError, Preprocessing, decode_image, preprocess
from tests.source_layouts import encode, jpeg, photo, rotated_jpeg


def test_rgb_is_decoded_as_pillow_does():
    assert np.array_equal(decode_image(encode(photo(1), "PNG")), np.asarray(photo(1)))
    assert np.array_equal(decode_image(jpeg(1)), np.asarray(Image.open(io.BytesIO(jpeg(1)))))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_greyscale_becomes_three_equal_channels(image_format):
    pixels = decode_image(encode(photo(2).convert("L"), image_format))
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2])


def test_sixteen_bit_greyscale_keeps_its_tones():
    values = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
    pixels = decode_image(encode(Image.fromarray(values), "PNG"))
    assert np.array_equal(pixels[..., 1], (values >> 8).astype(np.uint8))


def test_transparency_goes_on_white():
    image = photo(3).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 20, axis=1).repeat(30, axis=0)))
    pixels = decode_image(encode(image, "PNG"))
    assert (pixels[:, :20] == 255).all()
    assert np.array_equal(pixels[:, 20:], np.asarray(photo(3))[:, 20:])


def test_transparent_palette_goes_on_white():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, 8, 16))
    pixels = decode_image(encode(image, "PNG", transparency=0))
    assert (pixels[:, :8] == 255).all() and (pixels[:, 8:] == [200, 10, 10]).all()


def test_cmyk_comes_close_to_its_rgb():
    pixels = decode_image(encode(photo(4).convert("CMYK"), quality=100, subsampling=0))
    assert np.abs(pixels.astype(int) - np.asarray(photo(4))).mean() < 3


@pytest.mark.parametrize("orientation, turns", [(3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(orientation, turns):
    upright = decode_image(rotated_jpeg(5, 1))
    assert np.array_equal(decode_image(rotated_jpeg(5, orientation)), np.rot90(upright, turns))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    pixels = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels == [255, 0, 0]).all()


def test_heic_where_its_decoder_is_installed():
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif")
    heif.register_heif_opener()
    pixels = decode_image(encode(photo(6, (64, 64)), "HEIF", quality=95))
    assert np.abs(pixels.astype(int) - np.asarray(photo(6, (64, 64)))).mean() < 8


@pytest.mark.parametrize(
    "kind, data, expected",
    [
        ("unreadable", b"", "empty file"),
        ("unreadable", b"just some text, no image", "starts? with"),
        ("unreadable", b"<!DOCTYPE html><html>404</html>", "a web page"),
        ("truncated", jpeg(7)[: len(jpeg(7)) // 2], "damaged"),
        ("truncated", encode(photo(7, (200, 200)), "PNG")[:300], "damaged"),
        ("too small", encode(Image.new("RGB", (1, 1)), "PNG"), "1×1"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_one_line(kind, data, expected):
    with pytest.raises(ImageError, match=expected) as caught:
        decode_image(data)
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_huge_images_are_refused_from_their_header():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    with pytest.raises(ImageError, match="at most 200 megapixels, got one of 400") as caught:
        decode_image(data)
    assert caught.value.kind == "too large"


def test_a_target_size_shrinks_large_jpegs_but_not_below_twice_the_target():
    image = photo(8, (1600, 1200))
    small = decode_image(encode(image), target_size=100)
    assert 200 <= min(small.shape[:2]) < 600
    full = preprocess(np.asarray(image), Preprocessing(100)).astype(int)
    assert np.abs(preprocess(small, Preprocessing(100)) - full).max() <= 6


def triangle_resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize the first axis by the textbook: weights max(0, 1 - |distance| / scale), normalised."""
    length = pixels.shape[0]
    scale = length / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(length)[None]) / support)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("sl,l...->s...", weights, pixels.astype(float))


@pytest.mark.parametrize("height, width", [(90, 131), (131, 90), (20, 20)])
@pytest.mark.parametrize("crop", ["center", "none"])
def test_preprocess_crops_and_resizes_like_the_textbook(height, width, crop):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cropped = image
    if crop == "center":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        cropped = image[top : top + side, left : left + side]
    expected = triangle_resize(triangle_resize(cropped, 33).swapaxes(0, 1), 33).swapaxes(0, 1)
    result = preprocess(image, Preprocessing(33, crop))
    assert result.shape == (33, 33, 3) and result.dtype == np.uint8
    # Pillow rounds to 8 bits between the two axes.
    assert np.abs(result - expected).max() <= 1.01


def test_preprocessing_goes_through_a_dictionary_and_refuses_what_it_does_not_know():
    preprocessing = Preprocessing(75, "none", "bicubic")
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    for fields, expected in [
        ({"image_size": 0}, "positive"),
        ({"crop": "centre"}, "center, none"),
        ({"resize": "nearest"}, "bilinear"),
        ({"side": 3}, "side"),
    ]:
        with pytest.raises(CapjaxError, match=expected):
            Preprocessing.from_dict(fields)
