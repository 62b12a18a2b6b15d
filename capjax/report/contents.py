"""The contents of a report: rows of captions, scores and measures, and which rows are worth showing."""

import math
import numbers
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capjax.report.explanation import Explanation

RANKED_BY = "CIDEr-D"
"""The metric that says which captions are best and worst, where nothing else is said."""


@dataclass(frozen=True)
class CaptionRow:
    """One image with the caption that a model wrote for it.

    Attributes:
      image_id: the id in the data set and in results files.
      file_name: where the image came from; only shown.
      image: encoded image of any format and size, a function that reads it once it is to be shown, or None.
      caption: the generated caption.
      references: the captions that people wrote.
      log_prob: natural log-probability of the caption under the model.
      scores: metric name to this image's score, unscaled (1.0, not 100).
      alternatives: further captions of an n-best list with their log-probabilities, best first.
      verdict: a word on the caption; "right", "partly" and "wrong" are shown in colour.
      ailments: what is wrong with the caption, whatever the image shows.
      explanation: what can be told of its words.
      crop: what part of the picture the explanation covers: its "center" square, or all ("none").
      rival: what the model that this one is compared with wrote, if it is.
      rival_scores: of that.
    """

    image_id: int
    file_name: str
    image: Callable[[], bytes | None] | bytes | None
    caption: str
    references: Sequence[str] = ()
    log_prob: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    alternatives: Sequence[tuple[str, float]] = ()
    verdict: str | None = None
    ailments: Sequence[str] = ()
    explanation: Explanation | None = None
    crop: str = "none"
    rival: str | None = None
    rival_scores: Mapping[str, float] = field(default_factory=dict)

    def picture(self) -> bytes | None:
        """Return the encoded image, read now if that was put off."""
        return self.image() if callable(self.image) else self.image


@dataclass(frozen=True)
class Score:
    """A score over all images, unscaled, with its confidence interval if there is one; the page prints it × 100."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Measure:
    """A health measure of the captions: a share (0 to 1, printed in per cent), a count, or any other number."""

    name: str
    value: float
    kind: Literal["share", "count", "number"] = "number"
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """How much higher a score is than the rival's, unscaled, with the interval of that and its p-value."""

    name: str
    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
      title: heading of the page.
      note: what this is, in plain words; blank lines separate paragraphs.
      settings: how the captions were decoded (search, beam_size, …).
      decoded: the same in a few words, repeated beside every table and figure.
      rows: every caption, in the order of the data set; the page shows a sample of many, and numbers of all.
      scores: scores over all rows, in the order to show them.
      health: health measures of the captions.
      log: training records (see `read_log`) for the curves; may be empty.
      interval: what the scores' intervals are.
      rank_by: the metric that says which captions are best and worst.
      all_rows_in: where every row is written, said on a page that shows a sample.
      rival: the name of what the captions are compared with, empty if they are not.
      differences: from the rival's scores, in the order to show them.
    """

    title: str
    note: str
    settings: Mapping[str, Any]
    rows: Sequence[CaptionRow]
    decoded: str = ""
    scores: Sequence[Score] = ()
    health: Sequence[Measure] = ()
    log: Sequence[Mapping[str, Any]] = ()
    interval: str = "95 % bootstrap interval over images"
    rank_by: str = RANKED_BY
    all_rows_in: str = ""
    rival: str = ""
    differences: Sequence[Difference] = ()


def one_line(text: str) -> str:
    """Return text fit for one line of a page or picture: no line breaks, control characters or lone surrogates."""
    kept = (" " if unicodedata.category(character) in ("Cc", "Cs") else character for character in text)
    return " ".join("".join(kept).split())


def is_number(value: Any) -> bool:
    """Tell whether `value` is a finite number, of Python or NumPy."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def ranked(rows: Sequence[CaptionRow], metric: str) -> list[CaptionRow]:
    """Return the rows that have a score in `metric`, best first."""
    scored = [row for row in rows if is_number(row.scores.get(metric))]
    return sorted(scored, key=lambda row: row.scores[metric], reverse=True)


def extremes(rows: Sequence[CaptionRow], metric: str, count: int) -> dict[str, list[CaptionRow]]:
    """Return the `count` best, median and worst rows by `metric`, without a row in two groups.

    With fewer than 3 × `count` rows the groups shrink; with fewer than three there are none.
    """
    order = ranked(rows, metric)
    count = min(count, len(order) // 3)
    if count == 0:
        return {}
    middle = (len(order) - count) // 2
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}


def spread(rows: Sequence[CaptionRow], count: int) -> list[CaptionRow]:
    """Choose `count` rows evenly from best to worst by CIDEr-D: a fair sample that shows failures too.

    Rows without that score are taken evenly in their own order when no row has one.
    """
    return _evenly(ranked(rows, RANKED_BY) or rows, count)


def sample(rows: Sequence[CaptionRow], count: int, metric: str) -> list[CaptionRow]:
    """Choose at most `count` rows for people to look through, in their own order; all if there are no more.

    Those that are explained are among them. A twentieth each are the best, the median and the worst by `metric`. Up to
    half are captions with an ailment, equally many of every kind if there are enough. The others go evenly from best to
    worst, and on over the rows without a score.
    """
    if len(rows) <= count:
        return list(rows)
    groups = [[row for row in rows if row.explanation], *extremes(rows, metric, count // 20).values()]
    kinds = {ailment for row in rows for ailment in row.ailments}
    for kind in kinds:
        groups.append(_evenly([row for row in rows if kind in row.ailments], count // (2 * len(kinds))))
    special = {id(row) for group in groups for row in group}
    unscored = (row for row in rows if not is_number(row.scores.get(metric)))
    others = [row for row in [*ranked(rows, metric), *unscored] if id(row) not in special]
    chosen = special | {id(row) for row in _evenly(others, count - len(special))}
    return [row for row in rows if id(row) in chosen]


def _evenly(rows: Sequence[CaptionRow], count: int) -> list[CaptionRow]:
    """Choose `count` rows at equal distances, the first and the last among them."""
    if count >= len(rows):
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / max(count - 1, 1))] for index in range(count)]
