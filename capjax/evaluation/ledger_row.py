"""What the ledger tells of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from capjax import config as configuration
from capjax.evaluation.captioned_split import CaptionedSplit
from capjax.metrics.coco_caption import METRICS
from capjax.report.ledger import asked_of, config_sha256, provenance


def ledger_row(split: CaptionedSplit, report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of an evaluation; see `capjax.report.ledger`.

    Args:
        split: the captions.
        report: the content of metrics.json.
        log: of the training of the (first) model.
    """
    model = split.seen.models[0]
    sees = model.encoder.config.source if model.encoder else (model.features or {}).get("imported", "imported features")
    if model.encoder and model.config.encoder.endpoint:
        sees += f" to {model.config.encoder.endpoint}"
    changes = configuration.changes(model.config)
    return {
        "recipe": " + ".join(dict.fromkeys(m.config.recipe for m in split.seen.models)),
        "config": asked_of(changes),
        "config_sha256": config_sha256(changes),
        "init_from": model.config.train.init_from,
        "decoder": model.config.decoder.to_dict(),
        "seeds": [m.config.seed for m in split.seen.models],
        "encoder": sees,
        "data": {name: report["settings"][name] for name in ("dataset", "split", "num_images")},
        "search": split.settings.to_dict(),
        "scores": {name: report[name] for name in report["intervals"] or METRICS if name in report},
        "intervals": report["intervals"],
        "health": report["health"],
        "right": report.get("right"),
        "captions_per_second": report["captions_per_second"],
        "validation": model.summary["scores"],
        "training_seconds": sum(line.get("train/seconds", 0.0) for line in log) or None,
        "command": report["command"],
        **provenance(),
    }
