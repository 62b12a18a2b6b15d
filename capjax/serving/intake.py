"""What arrives: the body of a request within its bounds and in memory alone, and the images in it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from capjax.errors import printable
from capjax.images import ImageError, Preprocessing, decode_image, open_image, photo_id, preprocess
from capjax.serving.limits import Limits
from capjax.serving.problems import Problem, image_problem

IMAGE_FIELD = "image"
_ICONS = ("ICNS", "ICO")  # they hold whole PNG files, of any size
_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 2_000
_MAX_NAME = 200


class UploadedImage(NamedTuple):
    """An encoded image, and the name that its sender gave it: a label, which leads nowhere."""

    name: str
    content: bytes


class Upload(NamedTuple):
    """A request: its images, and the other fields, as text."""

    images: list[UploadedImage]
    fields: dict[str, str]


class Photo(NamedTuple):
    """An image as the encoder sees it, and its id, by which random draws are its own."""

    pixels: UInt8[np.ndarray, "S S 3"]
    image_id: int


class _InMemory(MultiPartParser):
    """Starlette's parser without its files on the disk: what it parses is bounded and fits into memory."""

    spool_max_size = 0  # a SpooledTemporaryFile takes it for no limit


async def read_upload(request: Request, limits: Limits, hold: Callable[[int], None]) -> Upload:
    """Read a request.

    Args:
        request: multipart/form-data with images under `image`, or an image as the body and the fields in the query.
        limits: of the body.
        hold: see `Admission.body`.

    Raises:
        Problem: if the body is too large, too slow, or something else.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" and not kind.startswith(b"image/"):
        raise Problem(
            415,
            "expected multipart/form-data with images under the field `image`, or one image as the body with a "
            f"Content-Type of image/…, got {_shown(kind.decode('latin-1')) or 'no Content-Type'}",
        )
    query = request.query_params.multi_items()
    fields = _text_fields(query)
    chunks = _bounded(request, limits, hold)
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == b"multipart/form-data":
                form = await _parse(chunks, options.get(b"boundary", b""), limits)
                images, texts = await _contents(form)
                return Upload(images, _text_fields([*query, *texts]))
            content = b"".join([chunk async for chunk in chunks])
    except TimeoutError:
        raise Problem(
            408,
            f"expected the whole body within {limits.body_seconds:g} seconds, got a part; send smaller images",
            {"Connection": "close"},
        ) from None
    return Upload([UploadedImage(IMAGE_FIELD, content)], fields)


async def _bounded(request: Request, limits: Limits, hold: Callable[[int], None]) -> AsyncIterator[bytes]:
    """Yield the body, whose bytes are counted whatever its header says."""
    declared = request.headers.get("content-length", "")
    announced = int(declared) if declared.isdecimal() else None
    for_all = limits.max_request_bytes
    if announced is not None:
        _check_size(announced, for_all)
        hold(announced)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        _check_size(received, for_all)
        if announced is None:
            hold(len(chunk))
        yield chunk


def _check_size(num_bytes: int, most: int) -> None:
    if num_bytes > most:
        raise Problem(
            413, f"expected a body of at most {most:,} bytes, got {num_bytes:,} or more; send smaller or fewer images"
        )


async def _parse(chunks: AsyncIterator[bytes], boundary: bytes, limits: Limits) -> FormData:
    # Of the header nothing but the boundary goes on: a charset of the sender's choice would decode the names.
    header = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%s"' % boundary)])
    parser = _InMemory(
        header, chunks, max_files=limits.max_images, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    try:
        return await parser.parse()
    except (MultiPartException, FormParserError) as error:  # older versions of Starlette let the other one through
        reason = str(error)[:_MAX_NAME]
        raise Problem(
            413 if reason.startswith("Too many") else 400,
            f"expected multipart/form-data with at most {limits.max_images} files and {_MAX_FIELDS} fields of "
            f"{_MAX_FIELD_BYTES:,} bytes, as curl -F sends it, got something else ({reason})",
        ) from None


async def _contents(form: FormData) -> tuple[list[UploadedImage], list[tuple[str, str]]]:
    """Return the images of a form and its other fields."""
    images, texts = [], []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name == IMAGE_FIELD:
            images.append(UploadedImage(_shown(value.filename or IMAGE_FIELD), await value.read()))
        elif isinstance(value, UploadFile):
            raise Problem(422, f"expected files under the field `{IMAGE_FIELD}`, got one under {_shown(name)!r}")
        elif name == IMAGE_FIELD:
            raise Problem(422, f"expected a file under `{IMAGE_FIELD}`, got text; with curl: -F image=@photo.jpg")
        else:
            texts.append((name, value))
    if not images:
        raise Problem(422, f"expected at least one image under the field `{IMAGE_FIELD}`, got none")
    return images, texts


def _text_fields(items: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in items:
        if name in fields:
            raise Problem(422, f"expected the field {_shown(name)!r} once, got it twice; several words take commas")
        if len(name) + len(value) > _MAX_FIELD_BYTES:
            raise Problem(422, f"expected fields of at most {_MAX_FIELD_BYTES:,} characters, {_shown(name)!r} has more")
        fields[name] = value
    return fields


def _shown(text: str) -> str:
    return printable(text[:_MAX_NAME])


def read_photo(content: bytes, max_pixels: int, preprocessing: Preprocessing) -> Photo:
    """Decode an image and make of it what the encoder sees.

    Args:
        content: the encoded image, whatever its name promises.
        max_pixels: compared with its header before a pixel is decoded.
        preprocessing: of the model.

    Raises:
        Problem: 415 for what is no image, 413 for too many pixels, 422 for a damaged one.
    """
    opened = False
    try:
        with open_image(content) as image:
            width, height = image.size
            is_icon = image.format in _ICONS
        opened = True
        if is_icon:
            raise Problem(415, "expected a photo, got an icon, whose header does not tell its size; send it as PNG")
        if width * height > max_pixels:
            raise Problem(
                413,
                f"expected an image of at most {max_pixels / 1e6:g} megapixels, got {width}×{height}; send a "
                "smaller copy",
            )
        pixels = preprocess(decode_image(content), preprocessing)
    except ImageError as error:
        raise image_problem(error, opened) from None
    # The id of `capjax.captioning.photos.read_photos`: the same photo draws the same caption there and here.
    return Photo(pixels, photo_id(content))
