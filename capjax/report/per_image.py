"""All that a page could show of each image, but for the picture, as JSON lines: what programs read, and people search.

{"image_id": 7, "file_name": "7.jpg", "caption": "a dog runs", "log_prob": -3.2, "references": ["a dog is running"],
 "alternatives": [], "verdict": null, "ailments": [], "CIDEr-D": 0.93}
"""

import json
import os
from collections.abc import Sequence
from typing import Any

from capjax.host.disk import finite_or_none, write_atomically
from capjax.report.contents import CaptionRow, is_number


def write_per_image(path: str | os.PathLike[str], rows: Sequence[CaptionRow]) -> None:
    """Write one JSON object a row, in their order.

    Scores are unscaled, each under its metric's name; a metric that has none of an image is left out there. A
    log-probability that is not finite is null. Alternatives are pairs of caption and log-probability.

    Args:
      path: file to write.
      rows: every caption.

    Raises:
      CapjaxError: the file cannot be written.
    """
    write_atomically(path, "".join(json.dumps(_as_object(row), allow_nan=False) + "\n" for row in rows))


def _as_object(row: CaptionRow) -> dict[str, Any]:
    return {
        "image_id": row.image_id,
        "file_name": row.file_name,
        "caption": row.caption,
        "log_prob": finite_or_none(row.log_prob),
        "references": list(row.references),
        "alternatives": [[caption, finite_or_none(log_prob)] for caption, log_prob in row.alternatives],
        "verdict": row.verdict,
        "ailments": list(row.ailments),
    } | {metric: float(value) for metric, value in row.scores.items() if is_number(value)}
