"""Where models come from: a folder, or Hugging Face's hub as `hf://OWNER/NAME[@REVISION]`."""

import pathlib
import re

from capjax.errors import CapjaxError, first_line
from capjax.host.disk import local_path

_PREFIX = "hf://"
_FILES = ("model.json", "vocabulary*.json", "weights-*.safetensors")
"""What is fetched: nothing that could be run, and no weights in another form."""


def is_remote(path: str) -> bool:
    """Tell whether a model is to be fetched."""
    return path.startswith(_PREFIX)


def model_folder(path: str) -> pathlib.Path:
    """Return the folder of a model, fetched if need be into the cache that all programs of the hub share.

    Args:
        path: a folder, or `hf://OWNER/NAME` with the branch, tag or commit behind an @.

    Raises:
        CapjaxError: if it is not there, or cannot be fetched.
    """
    if not is_remote(path):
        return local_path(path)
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", path)
    if not match:
        raise CapjaxError(f"expected a model on the hub as hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got {path}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise CapjaxError(f"to fetch {path}, huggingface_hub is needed: pip install 'capjax[hub]'") from None
    try:
        return pathlib.Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        cause = error.__cause__ or error  # what the hub or the network said, before advice on it
        reason = first_line(cause)
        raise CapjaxError(f"expected to fetch {path}, could not: {reason}") from None
