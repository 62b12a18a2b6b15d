"""Decoding of every kind of image, and preprocessing against a plain implementation of the triangle filter."""

import contextlib
import io
import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from capjax.data.ingestion import examine
from capjax.errors import CapjaxError
from capjax.images import (
    MIN_SIDE,
    RESAMPLING,
    ImageError,
    Preprocessing,
    decode_image,
    list_images,
    preprocess,
    read_image_file,
    small_picture,
    thumbnail,
)
from tests.image_mutations import encoded_images, mutations
from tests.rare_images import iptc
from tests.source_layouts import encode, jpeg, photo, rotated_jpeg, write


def test_rgb_is_decoded_as_pillow_does():
    assert np.array_equal(decode_image(encode(photo(1), "PNG")), np.asarray(photo(1)))
    assert np.array_equal(decode_image(jpeg(1)), np.asarray(Image.open(io.BytesIO(jpeg(1)))))


def test_shares_that_a_filter_led_beyond_one_are_shares():
    grey = np.linspace(-0.02, 1.02, 16 * 16).reshape(16, 16).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "TIFF")
    assert np.abs(decode_image(buffer.getvalue())[..., 0] - 255 * grey.clip(0, 1)).max() <= 1


@pytest.mark.parametrize(
    "dtype, most",
    [
        ("int32", 255),
        ("int32", 2**16 - 1),
        ("int32", 2**24 - 1),
        ("int32", 2**31 - 1),
        ("uint16", 2**16 - 1),
        ("float32", 1),
        ("float32", 255),
        ("float32", 260),
        ("float32", 2**16 - 1),
    ],
)
def test_greyscale_of_more_bits_keeps_its_range(dtype, most):
    grey = np.linspace(0, 1, 16 * 16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray((grey * most).astype(dtype)).save(buffer, "TIFF")
    pixels = decode_image(buffer.getvalue())
    expected = {2**31 - 1: 127 * grey, 260: (260 * grey).clip(0, 255)}.get(
        most, 255 * grey
    )  # the upper eight of 32 bits
    assert np.abs(pixels[..., 0] - expected).max() <= 1 and np.ptp(pixels, axis=2).max() == 0


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
        ("unreadable", b"\0\0\0 ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99), "expected an image .* got 131 bytes"),
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


def png_of_size(width: int, height: int) -> bytes:
    """Write the header of a PNG of any size, and no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def test_huge_images_are_refused_from_their_header():
    with pytest.raises(ImageError, match="at most 200 megapixels, got one of 400") as caught:
        decode_image(png_of_size(20_000, 20_000))
    assert caught.value.kind == "too large"


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


def test_every_filter_is_pillows_of_that_name():
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    found = {name: preprocess(image, Preprocessing(33, resize=name)) for name in RESAMPLING}
    for name, pixels in found.items():
        expected = Image.fromarray(image).resize((33, 33), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert set(found) == {"bilinear", "bicubic", "lanczos", "box"}
    assert len({pixels.tobytes() for pixels in found.values()}) == 4


def test_preprocessing_gives_its_fields_and_refuses_what_it_does_not_know():
    assert Preprocessing(75, "none", "bicubic").to_dict() == {"image_size": 75, "crop": "none", "resize": "bicubic"}
    for fields, expected in [
        ({"image_size": 0}, "positive"),
        ({"crop": "centre"}, "center, none"),
        ({"resize": "nearest"}, "bilinear"),
    ]:
        with pytest.raises(CapjaxError, match=expected):
            Preprocessing(**fields)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_any_mode_becomes_a_small_rgb_jpeg(mode):
    source = Image.new("RGB", (600, 300), "white")
    source = Image.fromarray(np.full((300, 600), 65535, np.uint16)) if mode == "I;16" else source.convert(mode)
    with Image.open(io.BytesIO(thumbnail(encode(source, "PNG")))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (224, 112))
        assert np.asarray(small).min() > 250


def test_a_thumbnail_of_cmyk_keeps_its_colour():
    red = Image.new("CMYK", (400, 400), (0, 255, 255, 0))
    with Image.open(io.BytesIO(thumbnail(encode(red, "JPEG")))) as small:
        pixel = np.asarray(small)[100, 100].astype(int)
    assert pixel[0] > 200 and pixel[1:].max() < 60


def test_transparent_pixels_show_white_in_small_pictures():
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    assert np.asarray(small_picture(encode(clear, "PNG"), 50)).min() == 255


def test_sixteen_bit_grey_keeps_its_range_in_small_pictures():
    ramp = Image.fromarray(np.repeat(np.linspace(0, 65535, 200).astype(np.uint16)[None], 20, axis=0))
    grey = np.asarray(small_picture(encode(ramp, "PNG"), 200))[0, :, 0]
    assert grey[0] == 0 and grey[-1] == 255 and abs(int(grey[100]) - 128) < 3


def test_pictures_are_turned_upright():
    lying = Image.new("RGB", (300, 100), "blue")
    lying.paste("red", (0, 0, 150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    upright = small_picture(encode(lying, "JPEG", exif=exif, quality=95), 300)
    assert upright.size == (100, 300)
    pixels = np.asarray(upright).astype(int)
    assert pixels[30, 50, 0] > 200 and pixels[270, 50, 2] > 200  # the left half, red, is now on top


def test_small_jpegs_are_not_encoded_again():
    data = encode(Image.effect_noise((224, 150), 40).convert("RGB"), "JPEG", quality=90)
    assert thumbnail(data) == data
    assert thumbnail(data, 100) != data


@pytest.mark.parametrize("data", [b"", b"not an image", encode(Image.effect_noise((300, 300), 40), "PNG")[:5000]])
def test_broken_pictures_are_one_clear_error(data):
    with pytest.raises(ImageError, match="expected a"):
        thumbnail(data)


def test_real_photographs_shrink(real_data):
    paths = sorted((real_data / "coco-mini" / "val2017").glob("*.jpg"))[:10]
    for path in paths:
        data = path.read_bytes()
        small = thumbnail(data)
        with Image.open(io.BytesIO(data)) as full, Image.open(io.BytesIO(small)) as picture:
            assert max(picture.size) == 224
            assert abs(picture.width / picture.height - full.width / full.height) < 0.02
        assert len(small) < 30_000


def test_large_jpegs_are_decoded_small_for_thumbnails_only(monkeypatch):
    data, decoded, load = encode(photo(8, (1600, 1200))), [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size) or load(image))
    assert decode_image(data).shape == (1200, 1600, 3)
    assert max(decoded) == (1600, 1200)
    decoded.clear()
    small = np.asarray(small_picture(data, 100)).astype(int)
    assert max(decoded) == (400, 300)
    assert np.abs(small - np.asarray(photo(8, (1600, 1200)).resize((100, 75)))).max() < 8


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_images_of_every_format_end_in_a_clear_error_or_in_pixels():
    images = encoded_images()
    outcomes = Counter()
    for name, data in mutations(images, number=20 * len(images), seed=0):
        for read in (lambda data: [decode_image(data)], lambda data: [thumbnail(data, 16)], examine):
            try:
                pixels, *_ = read(data)
            except ImageError as error:
                outcomes[error.kind] += 1
                assert "\n" not in str(error) and len(str(error)) < 300, name
                continue
            except Exception as error:
                pytest.fail(f"{type(error).__name__} instead of an ImageError on {name}: {error}")
            outcomes["usable"] += 1
            if isinstance(pixels, np.ndarray):
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, name
                assert min(pixels.shape[:2]) >= MIN_SIDE, name
    # The damage is neither harmless nor always deadly.
    assert min(outcomes["usable"], outcomes["unreadable"], outcomes["truncated"]) > len(images)


def test_every_format_is_read_before_it_is_damaged():
    # An ICNS file holds the picture in several sizes, a Photo CD in one.
    shapes = {"ICNS": (1024, 1024, 3), "PCD": (512, 768, 3)}
    for name, data in encoded_images().items():
        pixels = decode_image(data)
        assert pixels.shape == shapes.get(name, (32, 32, 3)), name


@pytest.mark.parametrize(
    ("kind", "png", "message"),
    [
        ("too large", png_of_size(20_000, 20_000), "at most 200 megapixels, got one of 400"),
        ("too small", encode(Image.new("RGB", (4, 4)), "PNG"), "at least 8×8 pixels, got 4×4"),
    ],
    ids=["too large", "too small"],
)
def test_an_image_inside_an_image_is_too_large_or_too_small_as_any_other(kind, png, message):
    # An ICNS file of one icon, which is announced as of 128 × 128 pixels.
    icons = b"ic07" + struct.pack(">I", 8 + len(png)) + png
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(b"icns" + struct.pack(">I", 8 + len(icons)) + icons)
    assert caught.value.kind == kind


def test_image_files_are_listed_once_each_and_hidden_ones_are_not(tmp_path):
    for name in (
        "b/1.jpg",
        "b/2.PNG",
        "a/deep/3.webp",
        "top.jp2",
        ".hidden.jpg",
        ".git/4.jpg",
        "b/notes.txt",
        "b/.5.png",
    ):
        write(tmp_path / "all" / name, b"")
    write(tmp_path / "elsewhere" / "6.tiff", b"")
    # Links back to the folder, to a folder that is listed under its own name, and to one outside.
    (tmp_path / "all" / "a" / "again").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "a" / "alias").symlink_to(tmp_path / "all" / "b")
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "elsewhere")
    listed = [path.relative_to(tmp_path / "all").as_posix() for path in list_images(tmp_path / "all")]
    assert listed == ["a/deep/3.webp", "b/1.jpg", "b/2.PNG", "linked/6.tiff", "top.jp2"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path):
    write(tmp_path / "1.jpg", b"")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # until the path is longer than the system takes, which refuses root as well
        os.mkdir("d" * 250, dir_fd=folder)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(folder)
    image, unlisted = list_images(tmp_path)
    assert image == tmp_path / "1.jpg"
    with pytest.raises(ImageError, match="expected a readable image file, got File name too long"):
        read_image_file(unlisted)


def test_files_too_large_to_be_images_are_not_read(tmp_path):
    path = write(tmp_path / "a.jpg", jpeg(1))
    assert read_image_file(path) == jpeg(1)
    os.truncate(path, 10**12)  # takes no room
    with pytest.raises(ImageError, match="at most 256 MB, got 1,000,000 MB") as caught:
        read_image_file(path)
    assert caught.value.kind == "too large"
    # A link to a device that never ends.
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    with pytest.raises(ImageError, match="got a pipe or a device"):
        read_image_file(tmp_path / "endless.jpg")


def test_a_pipe_named_like_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="got a pipe or a device"):
        read_image_file(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["nowhere.jpg", ".", "nul\0.jpg"])
def test_files_that_cannot_be_read_are_one_line(tmp_path, name):
    with pytest.raises(ImageError, match="readable image file") as caught:
        read_image_file(tmp_path / name)
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: iptc(data, 5)], ids=["plain", "inside IPTC"])
def test_postscript_is_not_handed_to_ghostscript(tmp_path, monkeypatch, wrap):
    """Pillow would start a program on it, which an untrusted file had better not reach."""
    mark = tmp_path / "started"
    ghostscript = write(tmp_path / "bin" / "gs", f"#!/bin/sh\ntouch {mark}\n".encode())
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for read in (decode_image, thumbnail):
        with pytest.raises(ImageError, match="expected an image"):
            read(wrap(encode(photo(1), "EPS")))
    assert not mark.exists()
    with contextlib.suppress(OSError):
        Image.open(io.BytesIO(wrap(encode(photo(1), "EPS")))).load()
    assert mark.exists(), "Pillow by itself does"
