"""Another evaluation of the same images, which one is compared with."""

import json
import pathlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capjax import data
from capjax.captioning.splits import SeenSplit
from capjax.errors import CapjaxError
from capjax.metrics.bootstrap import compare
from capjax.metrics.coco_caption import Scores
from capjax.metrics.coco_files import read_results
from capjax.metrics.score_report import comparison_dict, comparison_table


@dataclass(frozen=True)
class Rival:
    """What another evaluation wrote.

    Attributes:
        folder: of the evaluation.
        captions: by image.
    """

    folder: pathlib.Path
    captions: Mapping[int, str]

    @property
    def name(self) -> str:
        """How it is called beside these captions."""
        return "/".join(self.folder.resolve().parts[-2:])


def read_rival(folder: pathlib.Path, seen: SeenSplit) -> Rival:
    """Read what another evaluation wrote of the images of a split.

    Raises:
        CapjaxError: if it is none, or not of these images.
    """
    if not (folder / "results.json").is_file():
        raise CapjaxError(
            f"expected an evaluation in {folder}, found no results.json; `capjax evaluate --out={folder}` writes one"
        )
    captions = read_results(str(folder / "results.json"))
    if lacking := [record.image_id for record in seen.records if record.image_id not in captions]:
        raise CapjaxError(
            f"expected an evaluation of the same images in {folder}, it lacks {len(lacking)} of {len(seen.records)}, "
            f"such as {lacking[0]}; evaluate the other model on this split first"
        )
    mine, theirs = seen.config.dataset.name, _dataset_of(folder)
    if theirs and _numbering(theirs) != _numbering(mine):
        print(
            f"warning: {folder} is an evaluation of {theirs}, this one of {mine}; images of one id are taken for one, "
            "as they are where both hold the same photos under the same names",
            file=sys.stderr,
        )
    return Rival(folder, captions)


def _dataset_of(folder: pathlib.Path) -> str:
    """Return the name of the dataset of an evaluation; "" where it does not say, as without references."""
    try:
        return str(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["settings"]["dataset"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def _numbering(dataset: str) -> tuple[str, str | None]:
    """Return what two datasets have in common whose images of one id are one: the source, and a name by the user."""
    try:
        name = data.parse_name(dataset)
    except CapjaxError:  # of another version
        return dataset, None
    return name.source, name.variant if data.SOURCES[name.source].named_by_user else None


def comparison_of(
    rival: Rival, rival_scores: Scores, out: pathlib.Path, scores: Scores, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Print how an evaluation differs from its rival, and return what metrics.json tells of that.

    Args:
        rival: the other one.
        rival_scores: of its captions.
        out: folder of this one.
        scores: of its captions.
        settings: of metrics.json: how many draws, and the level of the intervals.
    """
    comparison = {"with": rival.name, "metrics": {}}
    if num_samples := settings["bootstrap_samples"]:
        level = settings["confidence"]
        found = compare(rival_scores.results, scores.results, num_samples, level)
        print(comparison_table(str(rival.folder), str(out), found, num_samples, level))
        comparison["metrics"] = comparison_dict(found)
    return comparison
