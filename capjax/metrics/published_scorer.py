"""Where the published COCO scorer is, whose word lists METEOR needs and whose program SPICE."""

import importlib.util
import pathlib


def published_scorer() -> pathlib.Path | None:
    """Return the folder of the installed pycocoevalcap; None if there is none."""
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return pathlib.Path(folders[0]) if folders else None
