"""What was found wrong with a dataset, and what was done about it: kinds, counts, names."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from capjax.errors import printable


class Kind(NamedTuple):
    """A kind of trouble.

    Attributes:
        action: what prepare does: "left out", "converted", "repaired", "replaced" or "kept".
        summary: what it is, in the plural.
    """

    action: str
    summary: str


KINDS: dict[str, Kind] = {
    "unreadable": Kind("left out", "images that cannot be decoded"),
    "truncated": Kind("left out", "images cut short"),
    "too large": Kind("left out", "images of more than 200 megapixels"),
    "too small": Kind("left out", "images with a side below 8 pixels"),
    "greyscale": Kind("converted", "greyscale images"),
    "cmyk": Kind("converted", "images in CMYK colours"),
    "palette": Kind("converted", "images with a palette"),
    "transparent": Kind("converted", "images with transparency, put on white"),
    "other colours": Kind("converted", "images in another colour space"),
    "rotated": Kind("converted", "images that their EXIF data rotates"),
    "animated": Kind("converted", "animations, first frame taken"),
    "other format": Kind("converted", "images neither JPEG nor PNG"),
    "image without captions": Kind("left out", "images without captions"),
    "path outside": Kind("left out", "names that lead out of the folder of images"),
    "caption without image": Kind("left out", "captions without an image file"),
    "duplicate": Kind("kept", "images that several splits contain"),
    "several splits": Kind("kept", "rows that name another split than one before of the same image, whose split holds"),
    "repeated name": Kind("left out", "images listed again in another split"),
    "shared id": Kind("replaced", "ids that another image has, by one made of the name"),
    "empty caption": Kind("left out", "captions without words"),
    "long caption": Kind("left out", "captions of more than 200 words"),
    "mojibake": Kind("repaired", "captions in UTF-8 that was read as Windows-1252"),
    "control characters": Kind("repaired", "captions with control characters or byte order marks"),
    "lost characters": Kind("kept", "captions with replacement characters (U+FFFD)"),
    "not UTF-8": Kind("repaired", "caption files not in UTF-8, read as Windows-1252"),
    "byte order mark": Kind("repaired", "caption files that start with a byte order mark"),
    "malformed row": Kind("left out", "rows that cannot be read"),
}


_NUM_NAMES = 3  # that a line for people has


class Findings:
    """A growing list of trouble by kind, each with the name of the file or row and a detail."""

    def __init__(self) -> None:
        """Start empty."""
        self._by_kind: dict[str, list[tuple[str, str]]] = {}

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """Note trouble of a kind in `KINDS` with the file or row `name`."""
        assert kind in KINDS, kind
        # File systems may hold names that are not UTF-8; they cannot be printed as they are.
        name, detail = (text.encode("utf-8", "replace").decode("utf-8") for text in (name, detail))
        self._by_kind.setdefault(kind, []).append((name, detail))

    def __iter__(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Go through kinds and their (name, detail) pairs, in the order of `KINDS`."""
        return ((kind, self._by_kind[kind]) for kind in KINDS if kind in self._by_kind)

    def count(self, kind: str) -> int:
        """Count the trouble of a kind."""
        return len(self._by_kind.get(kind, ()))

    def to_dict(self) -> dict[str, Any]:
        """Give counts, actions and all names, JSON-ready."""
        return {
            kind: {
                "count": len(found),
                "action": KINDS[kind].action,
                "items": [{"name": name, "detail": detail} if detail else {"name": name} for name, detail in found],
            }
            for kind, found in self
        }

    def lines(self) -> list[str]:
        """Write one line per kind for people, with the first few names."""
        lines = []
        for kind, found in self:
            names = ", ".join(f"{name} ({detail})" if detail else name for name, detail in found[:_NUM_NAMES])
            more = f", … {len(found) - _NUM_NAMES:,} more" if len(found) > _NUM_NAMES else ""
            lines.append(f"{len(found):>8,}  {KINDS[kind].summary} ({KINDS[kind].action}): {printable(names)}{more}")
        return lines


def report_dict(name: str, num_images: dict[str, int], num_captions: dict[str, int], found: Findings) -> dict[str, Any]:
    """Assemble the report of a dataset, JSON-ready."""
    return {"dataset": name, "images": num_images, "captions": num_captions, "findings": found.to_dict()}


def report_json(report: dict[str, Any]) -> str:
    """Write a report as it is stored beside the data."""
    return json.dumps(report, ensure_ascii=False, indent=1) + "\n"
