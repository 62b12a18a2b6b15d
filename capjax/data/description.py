"""What may stand in the files by which TFDS reads a dataset: it imports modules and opens files that they name."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from capjax.errors import CapjaxError

_FEATURES = "tensorflow_datasets.core.features."
# As TFDS writes them, as it may read them, and as its older versions wrote them.
_CLASSES = ("pythonClassName", "python_class_name", "type")
_PARTS_OF_PATHS = ("name", "filepathTemplate", "filepath_template")


def check_description(directory: pathlib.Path) -> None:
    """Refuse a dataset whose description names a class that is not one of TFDS' own, or files elsewhere.

    Raises:
        CapjaxError: if it does, or cannot be read.
    """
    for name in _texts(_read(directory / "features.json"), _CLASSES):
        if not name.startswith(_FEATURES):
            raise CapjaxError(
                f"expected the features of TFDS in {directory}/features.json, it names {name!r}; do not trust this "
                "dataset, prepare it again"
            )
    for name in _texts(_read(directory / "dataset_info.json"), _PARTS_OF_PATHS):
        if "/" in name or "\0" in name:
            raise CapjaxError(
                f"expected the shards beside {directory}/dataset_info.json, it names {name!r}; do not trust this "
                "dataset, prepare it again"
            )


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CapjaxError(f"expected a description of a dataset in {path}, got {error}; prepare it again") from None


def _texts(value: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """Go through the texts under some keys, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from (str(value[key]) for key in keys if not isinstance(value.get(key, {}), dict))
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
