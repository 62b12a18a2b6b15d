"""Training curves and histograms: first as plain data (`Panel`), then as SVG that follows the page's colours.

The SVG carries classes, not colours, so that page.css can draw it for light and dark screens. `curves.py` draws the
same panels as a PNG.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from capjax.report.contents import is_number

MAX_POINTS = 300
"""Longer series are averaged over equal stretches down to this many points: more would not be seen."""

LONGEST = 30
"""The last bar of the histogram of lengths holds this many words and more."""

_PANELS = (
    # title, keys, factor, decimals, whether the best value is the highest or the lowest
    ("Reward of captions that were drawn", ("train/reward",), 1.0, 3, None),
    ("Loss (nats per word)", ("train/loss", "val/loss"), 1.0, 3, min),
    ("Perplexity", ("val/perplexity",), 1.0, 2, min),
    ("Next-word accuracy (%)", ("train/accuracy", "val/accuracy"), 100.0, 1, max),
    ("Validation CIDEr-D × 100, greedy decoding", ("val/CIDEr-D",), 100.0, 1, max),
    ("Learning rate", ("learning_rate",), 1.0, 6, None),
)


@dataclass(frozen=True)
class Series:
    """One line of a panel: its points in order of step, and the best of them where that means something."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    best: tuple[float, float] | None
    averaged: int


@dataclass(frozen=True)
class Panel:
    """One chart: a title and its lines."""

    title: str
    series: tuple[Series, ...]
    decimals: int


def panels(log: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Group the known quantities of a training log into panels; what the log lacks is left out.

    Of several records of one step the last counts, since a resumed run repeats steps. Left out are values that are not
    finite, and what training by a reward minimises, which is no loss of a word. A series of more than `MAX_POINTS`
    points is averaged over stretches of `averaged` points.
    """
    found = []
    for title, keys, factor, decimals, choose in _PANELS:
        series = []
        for key in keys:
            known = (record for record in log if is_number(record.get(key)))
            points = {
                record["step"]: factor * record[key]
                for record in known
                if not (key == "train/loss" and "train/reward" in record)
            }
            if points:
                series.append(_series(key, sorted(points.items()), choose if key.startswith("val/") else None))
        if series:
            found.append(Panel(title, tuple(series), decimals))
    return found


def _series(key: str, points: list[tuple[float, float]], choose: Callable | None) -> Series:
    name = {"train": "training", "val": "validation"}.get(key.split("/")[0], key.replace("_", " "))
    best = choose(points, key=lambda point: point[1]) if choose else None
    stretch = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    steps = tuple(statistics.fmean(step for step, _ in group) for group in groups)
    values = tuple(statistics.fmean(value for _, value in group) for group in groups)
    return Series(name, steps, values, best, stretch)


def ticks(low: float, high: float, count: int, least: float = 0.0) -> list[float]:
    """Return at most `count` + 1 round numbers within [low, high]: 1, 2 or 5 times a power of ten apart, or `least`."""
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    step = max(step, least)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _labelled(low: float, high: float, count: int, least: float = 0.0) -> list[tuple[float, str]]:
    """Return the ticks of an axis, printed with as many decimals as they need, and the same for all."""
    places = ticks(low, high, count, least)
    if not least and max(map(abs, places), default=0.0) >= 1e7:
        return [(tick, f"{tick:.4g}") for tick in places]
    decimals = next(
        (digits for digits in range(9) if all(abs(round(tick, digits) - tick) < 1e-9 for tick in places)), 9
    )
    return [(tick, f"{tick:,.{decimals}f}") for tick in places]


_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 26, 12, 48
_DIGIT = 8.2  # the width of one, at most


class _Axes:
    """Maps data to the drawing and draws grid, labels and frame."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str):
        self.x_range, self.y_range = x, y
        self.parts: list[str] = []
        y_labels = _labelled(*y, 7)
        self.left = max(_LEFT, round(10 + _DIGIT * max((len(label) for _, label in y_labels), default=0)))
        for tick, label in y_labels:
            height = self.y(tick)
            self.parts.append(
                f'<line class="grid" x1="{self.left}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>'
            )
            self.parts.append(f'<text x="{self.left - 7}" y="{height + 5:.1f}" text-anchor="end">{label}</text>')
        for tick, label in _labelled(*x, 5, least=1.0):  # steps, words
            place, below = self.x(tick), _HEIGHT - _BOTTOM + 19
            self.parts.append(f'<text x="{place}" y="{below}" text-anchor="middle">{label}</text>')
        middle = (self.left + _WIDTH - _RIGHT) / 2
        self.parts.append(f'<text x="{middle}" y="{_HEIGHT - 7}" text-anchor="middle">{escape(x_label)}</text>')

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (_WIDTH - self.left - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def svg(self, description: str) -> str:
        return (
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
            f"{''.join(self.parts)}</svg>"
        )


def _padded(low: float, high: float) -> tuple[float, float]:
    """Widen a range, so that the best value can be printed above its line and a constant has a height."""
    margin = 0.13 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def line_chart(panel: Panel) -> str:
    """Draw a panel as SVG, with a dot and its value where a validation line is best."""
    steps = [step for series in panel.series for step in series.steps]
    values = [value for series in panel.series for value in series.values]
    values += [series.best[1] for series in panel.series if series.best]
    x_range = (min(steps), max(steps)) if max(steps) > min(steps) else (min(steps) - 1, max(steps) + 1)
    axes = _Axes(x_range, _padded(min(values), max(values)), "step")
    told, form = [], f".{panel.decimals}f"
    for series in panel.series:
        style = f"series s-{series.name.replace(' ', '-')}" if len(panel.series) > 1 else "series s-validation"
        points = [(axes.x(step), axes.y(value)) for step, value in zip(series.steps, series.values, strict=True)]
        axes.parts.append(f'<polyline class="{style}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>')
        if len(series.steps) <= 60:
            axes.parts += [
                f'<circle class="{style}" cx="{x}" cy="{y}" r="2.5">'
                f"<title>step {step:,.0f}: {value:{form}}</title></circle>"
                for (x, y), step, value in zip(points, series.steps, series.values, strict=True)
            ]
        told.append(f"{series.name} from {series.values[0]:{form}} to {series.values[-1]:{form}}")
        if series.best:
            step, value = series.best
            x, y = axes.x(step), axes.y(value)
            anchor = "end" if x > _WIDTH / 2 else "start"
            beside = y + 20 if value == min(series.values) else y - 10  # where the line does not go
            axes.parts.append(
                f'<circle class="best" cx="{x}" cy="{y}" r="4.5"/>'
                f'<text class="value" x="{x}" y="{beside:.1f}" text-anchor="{anchor}">best {value:{form}}</text>'
            )
            told.append(f"best {value:{form}} at step {step:,.0f}")
    return axes.svg(f"{panel.title}: {'; '.join(told)}")


def shares(lengths: Sequence[int], longest: int) -> list[float]:
    """Return the share of captions of each length 0, 1, …, `longest`, where the last also holds the longer ones."""
    counts = [0] * (longest + 1)
    for length in lengths:
        counts[min(length, longest)] += 1
    return [count / max(len(lengths), 1) for count in counts]


def length_histogram(generated: Sequence[int], references: Sequence[int]) -> str:
    """Draw the lengths (in words) of generated captions and of references as SVG bars, in per cent of each."""
    both = [(name, lengths) for name, lengths in (("generated", generated), ("references", references)) if lengths]
    longest = min(max([1, *generated, *references]), LONGEST)
    bars = [(name, shares(lengths, longest)) for name, lengths in both]
    top = 100 * max((share for _, values in bars for share in values), default=0.0)
    x_label = f"words in the caption{f' ({LONGEST}: that many or more)' if longest == LONGEST else ''}"
    axes = _Axes((-0.6, longest + 0.6), (0.0, 1.08 * top or 1.0), x_label)
    width = (axes.x(1) - axes.x(0)) * 0.84 / max(len(both), 1)
    floor = axes.y(0)
    for place, (name, values) in enumerate(bars):
        for length, share in enumerate(values):
            if share:
                left, height = axes.x(length) + (place - len(both) / 2) * width, axes.y(100 * share)
                axes.parts.append(
                    f'<rect class="b-{name}" x="{left:.1f}" y="{height}" width="{width:.1f}" '
                    f'height="{floor - height:.1f}">'
                    f"<title>{length} words: {100 * share:.1f} % of {name}</title></rect>"
                )
    means = "; ".join(f"{name}: mean {sum(lengths) / len(lengths):.1f} words" for name, lengths in both)
    return axes.svg(f"Caption lengths, per cent of captions; {means}")
