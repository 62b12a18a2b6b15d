"""How sure a score is: confidence intervals over images, and the comparison of two systems on the same images.

Both draw images again and again and recompute the corpus score from sums of per-image statistics (`MetricResult`), all
draws at once as matrix products. Document frequencies stay as they are: the question is what other test images would
have given, not other references.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from capjax.errors import CapjaxError
from capjax.metrics.metric_result import MetricResult

_CHUNK = 250  # draws at a time: 250 draws of 40,000 images are 80 MB


@dataclass(frozen=True)
class Interval:
    """A confidence interval [low, high] of a score."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same images.

    Attributes:
      difference: corpus score of the second system less that of the first.
      interval: paired-bootstrap confidence interval of that difference.
      p_value: two-sided, by approximate randomisation.
    """

    difference: float
    interval: Interval
    p_value: float


def confidence_intervals(
    results: Mapping[str, MetricResult], num_samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Return a percentile bootstrap interval (Efron 1979; Koehn 2004 for BLEU) for each corpus score.

    Every metric sees the same draws.

    Args:
      results: metric results over the same N images.
      num_samples: bootstrap draws, each of N images with replacement.
      confidence: the level of the intervals, between 0 and 1.
      seed: of the draws.

    Raises:
      CapjaxError: a number of draws below 2, a level outside (0, 1).
    """
    samples = _bootstrap_scores([results], num_samples, confidence, seed)[0]
    return {name: _percentiles(values, confidence) for name, values in samples.items()}


def compare(
    first: Mapping[str, MetricResult],
    second: Mapping[str, MetricResult],
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare two systems that captioned the same images, in the same order, metric by metric.

    The interval is a paired bootstrap: both systems are scored on the same draws of images. The p-value is approximate
    randomisation (Noreen 1989; Riezler and Maxwell 2005): if the systems were alike, exchanging their captions of any
    image would be as likely as not; p = (1 + draws with at least the difference seen) / (1 + draws).

    Args:
      first, second: metric results; metrics that both have are compared.
      num_samples: draws for the interval and for the p-value; the smallest p-value is 1 / (1 + num_samples).
      confidence: the level of the intervals.
      seed: of the draws.

    Raises:
      CapjaxError: other numbers of images, a number of draws below 2, a level outside (0, 1).
    """
    names = [name for name in first if name in second]
    first = {name: first[name] for name in names}
    second = {name: second[name] for name in names}
    for name in names:
        if len(first[name].per_image) != len(second[name].per_image):
            raise CapjaxError(
                f"expected two systems on the same images, found {len(first[name].per_image)} and"
                f" {len(second[name].per_image)} images"
            )
    samples = _bootstrap_scores([first, second], num_samples, confidence, seed)
    extreme = _randomised_at_least(first, second, num_samples, seed)
    return {
        name: Comparison(
            second[name].corpus - first[name].corpus,
            _percentiles(samples[1][name] - samples[0][name], confidence),
            (1 + extreme[name]) / (1 + num_samples),
        )
        for name in names
    }


def _bootstrap_scores(
    systems: list[Mapping[str, MetricResult]], num_samples: int, confidence: float, seed: int
) -> list[dict[str, Float[np.ndarray, " samples"]]]:
    if num_samples < 2:
        raise CapjaxError(f"expected at least 2 bootstrap samples, got {num_samples}")
    if not 0 < confidence < 1:
        raise CapjaxError(f"expected a confidence level between 0 and 1, got {confidence}")
    scores: list[dict[str, list[np.ndarray]]] = [{name: [] for name in results} for results in systems]
    if not systems[0]:
        return [{} for _ in systems]
    num_images = len(next(iter(systems[0].values())).per_image)
    generator = np.random.default_rng([seed, 0])
    for size in _chunks(num_samples):
        draws = generator.integers(num_images, size=(size, num_images))
        weights = np.zeros((size, num_images))
        for row, draw in zip(weights, draws, strict=True):
            row += np.bincount(draw, minlength=num_images)
        for system, results in zip(scores, systems, strict=True):
            for name, result in results.items():
                system[name].append(result.combine(weights @ result.statistics, num_images))
    return [{name: np.concatenate(values) for name, values in system.items()} for system in scores]


def _randomised_at_least(
    first: Mapping[str, MetricResult], second: Mapping[str, MetricResult], num_samples: int, seed: int
) -> dict[str, int]:
    """Count the random exchanges of captions that lead to at least the difference seen."""
    at_least = dict.fromkeys(first, 0)
    if not first:
        return at_least
    num_images = len(next(iter(first.values())).per_image)
    generator = np.random.default_rng([seed, 1])
    for size in _chunks(num_samples):
        signs = generator.integers(2, size=(size, num_images)) * 2.0 - 1.0
        for name, one in first.items():
            other = second[name]
            middle = (one.statistics + other.statistics).sum(axis=0) / 2
            exchanged = signs @ ((other.statistics - one.statistics) / 2)
            differences = other.combine(middle + exchanged, num_images) - one.combine(middle - exchanged, num_images)
            seen = abs(other.corpus - one.corpus)
            at_least[name] += int((np.abs(differences) >= seen - 1e-12).sum())  # equal but for rounding counts
    return at_least


def _percentiles(values: Float[np.ndarray, " samples"], confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _chunks(total: int) -> Iterator[int]:
    for start in range(0, total, _CHUNK):
        yield min(_CHUNK, total - start)
