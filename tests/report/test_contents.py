"""Pictures of every kind become thumbnails, and the rows worth showing are the right ones."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capjax.errors import CapjaxError
from capjax.report.contents import CaptionRow, extremes, is_number, one_line, open_picture, spread, thumbnail


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def row(image_id: int, score: float | None) -> CaptionRow:
    return CaptionRow(image_id, f"{image_id}.jpg", None, "a dog", scores={} if score is None else {"CIDEr-D": score})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_any_mode_becomes_a_small_rgb_jpeg(mode: str) -> None:
    source = Image.new("RGB", (600, 300), "white")
    source = Image.fromarray(np.full((300, 600), 65535, np.uint16)) if mode == "I;16" else source.convert(mode)
    with Image.open(io.BytesIO(thumbnail(encode(source)))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (224, 112))
        assert np.asarray(small).min() > 250


def test_cmyk_jpeg_keeps_its_colour() -> None:
    red = Image.new("CMYK", (400, 400), (0, 255, 255, 0))
    with Image.open(io.BytesIO(thumbnail(encode(red, "JPEG")))) as small:
        pixel = np.asarray(small)[100, 100].astype(int)
    assert pixel[0] > 200 and pixel[1:].max() < 60


def test_transparent_pixels_show_white() -> None:
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    assert np.asarray(open_picture(encode(clear), 50)).min() == 255


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = Image.fromarray(np.repeat(np.linspace(0, 65535, 200).astype(np.uint16)[None], 20, axis=0))
    grey = np.asarray(open_picture(encode(ramp), 200))[0, :, 0]
    assert grey[0] == 0 and grey[-1] == 255 and abs(int(grey[100]) - 128) < 3


def test_pictures_are_turned_upright() -> None:
    lying = Image.new("RGB", (300, 100), "blue")
    lying.paste("red", (0, 0, 150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    upright = open_picture(encode(lying, "JPEG", exif=exif, quality=95), 300)
    assert upright.size == (100, 300)
    pixels = np.asarray(upright).astype(int)
    assert pixels[30, 50, 0] > 200 and pixels[270, 50, 2] > 200  # the left half, red, is now on top


def test_small_jpegs_are_not_encoded_again() -> None:
    data = encode(Image.effect_noise((224, 150), 40).convert("RGB"), "JPEG", quality=90)
    assert thumbnail(data) == data
    assert thumbnail(data, 100) != data


@pytest.mark.parametrize("data", [b"", b"not an image", encode(Image.effect_noise((300, 300), 40))[:5000]])
def test_broken_pictures_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(CapjaxError, match="expected a readable image"):
        thumbnail(data)


def test_real_photographs_shrink(real_data) -> None:
    paths = sorted((real_data / "coco-mini" / "val2017").glob("*.jpg"))[:10]
    for path in paths:
        data = path.read_bytes()
        small = thumbnail(data)
        with Image.open(io.BytesIO(data)) as full, Image.open(io.BytesIO(small)) as picture:
            assert max(picture.size) == 224
            assert abs(picture.width / picture.height - full.width / full.height) < 0.02
        assert len(small) < 30_000


def test_one_line_keeps_letters_and_drops_what_breaks_a_line() -> None:
    assert one_line("  a\ndog\t\x00 é日本 \ud800!") == "a dog é日本 !"
    assert one_line("🐕‍🦺") == "🐕‍🦺"  # joined emoji stay joined


@pytest.mark.parametrize("value", [0, 1.5, np.float32(0.5), np.float64(2), np.int64(3)])
def test_numbers_of_python_and_numpy_are_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [None, "1", math.nan, math.inf, np.float32("nan"), [1.0]])
def test_what_cannot_be_printed_as_a_number_is_none(value: object) -> None:
    assert not is_number(value)


def test_extremes_are_the_ends_and_the_middle_of_the_order() -> None:
    rows = [row(index, score) for index, score in enumerate([5, 1, None, 9, 3, float("nan"), 7, 2, 8, 4, 6])]
    groups = {
        name: [found.scores["CIDEr-D"] for found in chosen] for name, chosen in extremes(rows, "CIDEr-D", 2).items()
    }
    assert groups == {"best": [9, 8], "median": [6, 5], "worst": [2, 1]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), max_size=30), st.integers(1, 6))
def test_no_row_is_in_two_groups(scores: list[float], count: int) -> None:
    groups = extremes([row(index, score) for index, score in enumerate(scores)], "CIDEr-D", count)
    chosen = [found.image_id for group in groups.values() for found in group]
    assert len(chosen) == len(set(chosen)) == 3 * min(count, len(scores) // 3)


def test_spread_goes_from_best_to_worst() -> None:
    rows = [row(index, index) for index in range(101)]
    assert [found.image_id for found in spread(rows, 5)] == [100, 75, 50, 25, 0]
    assert [found.image_id for found in spread(rows, 1)] == [100]
    assert len(spread(rows, 500)) == 101


def test_spread_without_scores_keeps_the_order() -> None:
    assert [found.image_id for found in spread([row(index, None) for index in range(9)], 3)] == [0, 4, 8]
