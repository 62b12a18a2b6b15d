"""What the pages share: files of this folder put together, embedded data that cannot break out, pinned by hash."""

import base64
import hashlib
import json
import string
from importlib import resources
from typing import Any

from capjax import __version__


def page_of(frame: str, style: str, script: str, **parts: str) -> str:
    """Fill in a page: its parts, and style and script with the hashes that its content security policy allows.

    Args:
        frame: name of the file with the page's markup.
        style: the style sheet.
        script: the script.
        parts: HTML by the name of its place in the frame.
    """
    return string.Template(text_of(frame)).substitute(
        parts,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
    )


def text_of(*names: str) -> str:
    """Read files of this folder, one after the other."""
    folder = resources.files("capjax.report")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def embedded_json(value: Any) -> str:
    """Encode a value as JSON that cannot end the script element that holds it: no <, > or & is left, nor NaN."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_uri(picture: bytes, kind: str = "jpeg") -> str:
    """Write an encoded picture as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
