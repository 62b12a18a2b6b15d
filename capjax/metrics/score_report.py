"""Scores as people keep them: the content of metrics.json, a table for the terminal, the files."""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.metrics.bootstrap import Comparison, Interval, confidence_intervals
from capjax.metrics.caption_health import health, image_dependence, leakage
from capjax.metrics.coco_caption import FEW_IMAGES, METRICS, References, Scores
from capjax.metrics.ngrams import DocumentFrequencies

_SHARES = {
    "dangling_end": "dangling end",
    "unknown_word": "UNK",
    "repetition": "repetition",
    "empty": "empty",
    "distinct_captions": "distinct captions",
    "novel_captions": "novel captions",
}


def metric_names(text: str) -> tuple[str, ...]:
    """Split the value of `--metrics`.

    Raises:
      CapjaxError: one of the names is no metric, or there are none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise CapjaxError(f"expected metrics out of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    return names


def score_report(
    scores: Scores,
    references: References,
    hypotheses: Mapping[int, str],
    *,
    df: DocumentFrequencies | None = None,
    train: Mapping[int, Sequence[str]] | None = None,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    decoder: Mapping[str, Any] | str,
) -> dict[str, Any]:
    """Return the content of metrics.json: the scores by name, everything else under keys of its own.

    Args:
      scores: of the captions.
      references: that they were scored against.
      hypotheses: the captions.
      df: document frequencies that CIDEr used, if not those of the references.
      train: captions of the training images, for novelty and leakage.
      bootstrap_samples: draws for the intervals, 0 for none.
      confidence: level of the intervals.
      seed: of the draws and of the shuffled images.
      decoder: how the captions were made.
    """
    intervals: dict[str, Interval] = {}
    if bootstrap_samples:
        intervals = confidence_intervals(scores.results, bootstrap_samples, confidence, seed)
    ordered = [hypotheses[image_id] for image_id in scores.image_ids]
    train_captions = [text for texts in train.values() for text in texts] if train else None
    report: dict[str, Any] = dict(scores.corpus)
    report["settings"] = dict(scores.settings) | {
        "scale": "unscaled, as the published programs return them",
        "bootstrap_samples": bootstrap_samples,
        "confidence": confidence,
        "seed": seed,
        "decoder": decoder,
    }
    report["intervals"] = {name: [interval.low, interval.high] for name, interval in intervals.items()}
    report["skipped"] = dict(scores.skipped)
    if df is None and len(ordered) < FEW_IMAGES:
        few = (
            f"words are weighed by the references of these images alone, which says little of fewer than {FEW_IMAGES} "
            "(one alone always gives 0)"
        )
        report["notes"] = {name: few for name in ("CIDEr", "CIDEr-D") if name in scores.corpus}
    report["health"] = health(ordered, train_captions).to_dict()
    if len(ordered) > 1:
        report["image_dependence"] = {"metric": "CIDEr-D"} | image_dependence(
            references, hypotheses, "CIDEr-D", df, seed
        )
    if train is not None:
        leaks = leakage(train, references.raw)
        report["leakage"] = {
            "shared_image_ids": list(leaks.shared_image_ids),
            "same_image_captions": list(leaks.same_image_captions),
            "shared_captions": leaks.shared_captions,
        }
    return report


def score_table(
    name: str, scores: Scores, report: Mapping[str, Any], references: References, decoder: str = "unknown"
) -> str:
    """Lay out a report for the terminal, scores × 100; `name` says what was scored, `decoder` how it was decoded."""
    settings, measures = report["settings"], report["health"]
    lines = [
        f"{name}: {settings['num_images']} images, {len(references.image_of_caption)} references",
        f"  tokenizer: {settings['tokenizer']}; df: {settings['df']}; decoder: {decoder}",
    ]
    level = f"{100 * settings['confidence']:g} % interval ({settings['bootstrap_samples']} bootstrap samples)"
    lines.append(f"  {'metric (×100)':<14} {'score':>7}" + (f"   {level}" if report["intervals"] else ""))
    for metric, value in scores.corpus.items():
        row = f"  {metric:<14} {100 * value:7.2f}"
        if metric in report["intervals"]:
            low, high = report["intervals"][metric]
            row += f"   [{100 * low:.2f}, {100 * high:.2f}]"
        lines.append(row)
    lines += [f"  {metric}: {note}" for metric, note in report.get("notes", {}).items()]
    lines += [f"  {metric} skipped: {reason}" for metric, reason in scores.skipped.items()]
    shares = ", ".join(f"{_SHARES[key]} {100 * measures[key]:.1f} %" for key in _SHARES if measures[key] is not None)
    lines.append(f"  captions: {measures['mean_length']:.1f} words, {measures['vocabulary']} different ones; {shares}")
    lines.append(f"  distinct-1 {measures['distinct_1']:.4f}, distinct-2 {measures['distinct_2']:.4f}")
    if "image_dependence" in report:
        dependence = report["image_dependence"]
        lines.append(
            f"  image dependence: CIDEr-D {100 * dependence['score']:.2f} falls to {100 * dependence['shuffled']:.2f}"
            " when captions are dealt to other images"
        )
    if "leakage" in report:
        leaks = report["leakage"]
        lines.append(
            f"  leakage: {len(leaks['shared_image_ids'])} test images are in the training set,"
            f" {len(leaks['same_image_captions'])} look like training images under another id,"
            f" {100 * leaks['shared_captions']:.1f} % of the references are training captions"
        )
    return "\n".join(lines)


def comparison_table(
    first: str, other: str, comparison: Mapping[str, Comparison], num_samples: int, confidence: float
) -> str:
    """Lay out for the terminal what `compare` found of two systems, scores × 100."""
    lines = [
        f"{other} less {first}, paired over images ({num_samples} draws; p: approximate randomisation)",
        f"  {'metric (×100)':<14} {'change':>7}   {f'{100 * confidence:g} % interval':<18} p",
    ]
    for name, result in comparison.items():
        interval = f"[{100 * result.interval.low:+.2f}, {100 * result.interval.high:+.2f}]"
        digits = max(3, math.ceil(math.log10(num_samples)))
        lines.append(f"  {name:<14} {100 * result.difference:+7.2f}   {interval:<18} {result.p_value:.{digits}f}")
    return "\n".join(lines)


def comparison_dict(comparison: Mapping[str, Comparison]) -> dict[str, Any]:
    """Return what `compare` found as JSON values."""
    return {
        name: {
            "difference": result.difference,
            "interval": [result.interval.low, result.interval.high],
            "p_value": result.p_value,
        }
        for name, result in comparison.items()
    }


def write_metrics(folder: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Write metrics.json to a folder."""
    write_atomically(folder / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_scores(folder: pathlib.Path, report: Mapping[str, Any], scores: Scores) -> None:
    """Write metrics.json and per_image.jsonl, the scores of each image, to a folder."""
    write_metrics(folder, report)
    write_atomically(folder / "per_image.jsonl", "".join(line + "\n" for line in per_image_lines(scores)))


def per_image_lines(scores: Scores) -> Iterator[str]:
    """Yield one JSON object an image: `image_id` and its unscaled score by metric."""
    for number, image_id in enumerate(scores.image_ids):
        row = {name: float(result.per_image[number]) for name, result in scores.results.items()}
        yield json.dumps({"image_id": image_id} | row, allow_nan=False)
