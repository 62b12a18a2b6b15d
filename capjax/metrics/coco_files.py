"""Captions in the two JSON layouts of COCO, read with errors that say what is wrong with a file.

References are the annotation file (`{"images": [{"id": …}], "annotations": [{"image_id": …, "caption": …}]}`), results
the list that the COCO server takes (`[{"image_id": …, "caption": …}]`).
"""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from capjax.errors import CapjaxError

_REFERENCES = '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "text"}]}'
_RESULTS = '[{"image_id": 1, "caption": "text"}]'

# ROUGE-L and METEOR compare every word with every other.
_MOST_CHARACTERS = 10_000


def read_references(path: str | os.PathLike[str]) -> dict[int, list[str]]:
    """Read the captions of each image from a COCO annotation file.

    Images come in the order of `images`. As in the published scorer, annotations of other images do not count; images
    without annotations are left out. A file without `images` stands for the images of its annotations.

    Raises:
      CapjaxError: the file cannot be read or has another layout.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        hint = "; this looks like a results file" if isinstance(content, list) else ""
        raise CapjaxError(f"{path}: expected references in the COCO annotation layout {_REFERENCES}{hint}")
    captions: dict[int, list[str]] = {}
    if "images" in content:
        if not isinstance(content["images"], list):
            raise CapjaxError(f'{path}: expected a list under "images" as in {_REFERENCES}')
        for number, image in enumerate(content["images"]):
            captions[_integer(path, image, "id", f"images[{number}]")] = []
    listed = frozenset(captions)
    for number, annotation in enumerate(content["annotations"]):
        image_id, caption = _entry(path, annotation, f"annotations[{number}]")
        if "images" not in content or image_id in listed:
            captions.setdefault(image_id, []).append(caption)
    captions = {image_id: texts for image_id, texts in captions.items() if texts}
    if not captions:
        raise CapjaxError(f"{path}: expected captions, found no image with any")
    return captions


def read_results(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read one caption an image from a COCO results file.

    Raises:
      CapjaxError: the file cannot be read, has another layout or two captions for one image.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise CapjaxError(f"{path}: expected results in the COCO layout {_RESULTS}, found {_kind(content)}")
    captions: dict[int, str] = {}
    duplicates = []
    for number, entry in enumerate(content):
        image_id, caption = _entry(path, entry, f"entry {number}")
        if image_id in captions:
            duplicates.append(image_id)
        captions[image_id] = caption
    if duplicates:
        raise CapjaxError(f"{path}: expected one caption an image, found several for {_some(duplicates)}")
    if not captions:
        raise CapjaxError(f"{path}: expected results in the COCO layout {_RESULTS}, found an empty list")
    return captions


def _entry(path: str | os.PathLike[str], entry: Any, where: str) -> tuple[int, str]:
    image_id = _integer(path, entry, "image_id", where)
    caption = entry.get("caption")
    if not isinstance(caption, str):
        raise CapjaxError(f'{path}: expected a text under "caption" in {where}, found {_kind(caption)}')
    if len(caption) > _MOST_CHARACTERS:
        raise CapjaxError(
            f"{path}: expected captions of at most {_MOST_CHARACTERS:,} characters, found {len(caption):,} in {where}"
        )
    return image_id, caption


def _integer(path: str | os.PathLike[str], entry: Any, key: str, where: str) -> int:
    if not isinstance(entry, dict):
        raise CapjaxError(f'{path}: expected an object with "{key}" at {where}, found {_kind(entry)}')
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        found = repr(value) if isinstance(value, str | float) else _kind(value)
        raise CapjaxError(f'{path}: expected an integer under "{key}" in {where}, found {found}')
    return value


def _read_json(path: str | os.PathLike[str]) -> Any:
    def refuse(constant: str) -> None:
        raise CapjaxError(f"{path}: {constant} is no JSON value; write a number, a text or null in its place")

    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except FileNotFoundError as error:
        raise CapjaxError(f"{path}: no such file") from error
    except OSError as error:
        raise CapjaxError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CapjaxError(f"{path}: expected JSON in UTF-8, found other bytes at position {error.start}") from error
    except json.JSONDecodeError as error:
        raise CapjaxError(
            f"{path}: expected JSON, found a mistake in line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except ValueError as error:
        raise CapjaxError(f"{path}: expected JSON with numbers of ordinary length: {error}") from error
    except RecursionError as error:
        raise CapjaxError(f"{path}: expected a COCO file, found JSON nested too deep to be one") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _some(image_ids: Iterable[int]) -> str:
    listed = list(dict.fromkeys(image_ids))
    shown = ", ".join(str(image_id) for image_id in listed[:3])
    return f"image {shown}" if len(listed) == 1 else f"{len(listed)} images ({shown}{', …' * (len(listed) > 3)})"
