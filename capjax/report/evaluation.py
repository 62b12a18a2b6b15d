"""The page of an evaluation, from the scores and health measures in its metrics.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from capjax.report.contents import CaptionRow, Difference, Measure, Report, Score

# The health measures that the page shows: title, kind, explanation.
_HEALTH = {
    "dangling_end": ("dangling end", "share", "captions that break off, as in “with a”"),
    "unknown_word": ("unknown word", "share", "captions with UNK"),
    "repetition": ("repetition", "share", "captions that repeat an n-gram"),
    "empty": ("empty", "share", "captions without a word"),
    "distinct_captions": ("distinct captions", "share", "of all captions"),
    "distinct_1": ("distinct-1", "number", "different words over words"),
    "distinct_2": ("distinct-2", "number", "different bigrams over bigrams"),
    "vocabulary": ("vocabulary used", "count", "different words"),
    "mean_length": ("mean length", "number", "words"),
}


def evaluation_report(
    report: Mapping[str, Any],
    rows: Sequence[CaptionRow],
    *,
    title: str,
    note: str,
    settings: Mapping[str, Any],
    decoded: str,
    log: Sequence[Mapping[str, Any]],
    rival: str = "",
) -> Report:
    """Lay out the page of an evaluation.

    Args:
      report: the content of metrics.json; empty without references.
      rows: every caption.
      title, note, settings, decoded, log, rival: see `Report`.
    """
    intervals, health = report.get("intervals", {}), report.get("health", {})
    names = dict.fromkeys(name for row in rows for name in row.scores)  # images without references have none
    notes = report.get("notes", {})
    scored = [
        Score(name, report[name], *intervals.get(name, (None, None)), note=notes.get(name, ""))
        for name in names
        if name in report
    ]
    skipped = [Score(name, float("nan"), note=reason) for name, reason in report.get("skipped", {}).items()]
    measures = [
        Measure(name, health[key], kind, about)
        for key, (name, kind, about) in _HEALTH.items()
        if health.get(key) is not None
    ]
    if "image_dependence" in report:
        fall = report["image_dependence"]
        about = f"CIDEr-D {100 * fall['score']:.1f} falls to {100 * fall['shuffled']:.1f} when captions change images"
        measures.append(Measure("image dependence", 100 * (fall["score"] - fall["shuffled"]), "number", about))
    return Report(
        title=title,
        note=note,
        settings=settings,
        decoded=decoded,
        rows=rows,
        scores=scored + skipped,
        health=measures,
        log=log,
        all_rows_in="per_image.jsonl beside this page, their captions alone in results.json",
        rival=rival,
        differences=[
            Difference(name, found["difference"], *found["interval"], found["p_value"])
            for name, found in report.get("comparison", {}).get("metrics", {}).items()
        ],
    )
