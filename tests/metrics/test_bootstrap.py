"""Intervals and p-values: worked cases, and simulations that count how often they are right."""

import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.metrics.bootstrap import compare, confidence_intervals
from capjax.metrics.coco_caption import BLEU_NAMES, score
from capjax.metrics.metric_result import MetricResult, mean_result


def ratio_result(statistics: np.ndarray) -> MetricResult:
    """A corpus score that is no mean of image scores, as BLEU is: a ratio of sums."""
    return MetricResult(statistics[:, 0] / statistics[:, 1], statistics, lambda sums, _: sums[..., 0] / sums[..., 1])


def draw_ratio(generator: np.random.Generator, num_images: int, quality: np.ndarray | float) -> MetricResult:
    lengths = generator.integers(5, 15, num_images).astype(float)
    return ratio_result(np.column_stack([generator.binomial(lengths.astype(int), quality), lengths]))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = {"mean": 0, "ratio": 0}
    rounds = 300
    for seed in range(rounds):
        results = {
            "mean": mean_result(generator.exponential(1.0, 80)),
            "ratio": draw_ratio(generator, 80, 0.4),
        }
        intervals = confidence_intervals(results, num_samples=400, confidence=0.9, seed=seed)
        for name, truth in (("mean", 1.0), ("ratio", 0.4)):
            covered[name] += intervals[name].low <= truth <= intervals[name].high
    # 270 expected, standard deviation 5.2; skewed means come out a little short with any percentile interval.
    assert 250 <= covered["mean"] <= 288
    assert 254 <= covered["ratio"] <= 286


def test_p_values_of_equal_systems_are_uniform() -> None:
    generator = np.random.default_rng(1)
    p_values: dict[str, list[float]] = {"mean": [], "ratio": []}
    for seed in range(300):
        easy = generator.normal(size=60)  # what both systems find easy or hard
        quality = generator.uniform(0.2, 0.6, 60)
        first = {"mean": mean_result(easy + generator.normal(size=60)), "ratio": draw_ratio(generator, 60, quality)}
        second = {"mean": mean_result(easy + generator.normal(size=60)), "ratio": draw_ratio(generator, 60, quality)}
        for name, comparison in compare(first, second, num_samples=199, seed=seed).items():
            p_values[name].append(comparison.p_value)
    for values in p_values.values():
        for level, low, high in ((0.05, 4, 27), (0.2, 40, 81), (0.5, 121, 179)):
            assert low <= sum(p <= level for p in values) <= high  # binomial, 3.4 standard deviations


def test_difference_intervals_cover_and_p_values_find_a_difference() -> None:
    generator = np.random.default_rng(2)
    covered = found = 0
    rounds = 200
    for seed in range(rounds):
        easy = generator.normal(size=100)
        first = {"mean": mean_result(easy + generator.normal(size=100))}
        second = {"mean": mean_result(easy + generator.normal(size=100) + 0.5)}
        comparison = compare(first, second, num_samples=300, seed=seed)["mean"]
        covered += comparison.interval.low <= 0.5 <= comparison.interval.high
        found += comparison.p_value <= 0.05
    assert 178 <= covered <= 199
    assert found >= 175  # power about 0.94 for a shift of 3.5 standard errors


def test_bleu_intervals_resample_the_corpus_score() -> None:
    references = {n: [f"a dog number {n} runs", "the dog is running fast"] for n in range(12)}
    hypotheses = {n: "a dog runs" if n % 2 else f"the dog number {n} is running" for n in references}
    scores = score(references, hypotheses, BLEU_NAMES)
    generator = np.random.default_rng([3, 0])
    draws = generator.integers(12, size=(50, 12))
    expected = []
    for draw in draws:
        drawn = score(
            {place: references[n] for place, n in enumerate(draw.tolist())},
            {place: hypotheses[n] for place, n in enumerate(draw.tolist())},
            BLEU_NAMES,
        )
        expected.append(drawn.corpus["BLEU-2"])
    interval = confidence_intervals(scores.results, num_samples=50, confidence=0.8, seed=3)["BLEU-2"]
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(expected, [0.1, 0.9]), atol=1e-12)


def test_more_draws_than_are_held_at_a_time_are_all_different() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 30))
    results = {"x": mean_result(first)}
    draws = np.random.default_rng([3, 0]).integers(30, size=(600, 30))
    interval = confidence_intervals(results, num_samples=600, confidence=0.8, seed=3)["x"]
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(first[draws].mean(axis=1), [0.1, 0.9]))
    exchanged = np.random.default_rng([3, 1]).integers(2, size=(600, 30)) == 0
    differences = np.where(exchanged, first - second, second - first).mean(axis=1)
    extreme = (np.abs(differences) >= abs((second - first).mean())).sum()
    assert compare(results, {"x": mean_result(second)}, num_samples=600, seed=3)["x"].p_value == (1 + extreme) / 601


def test_the_smallest_p_value_counts_the_difference_seen_among_the_draws() -> None:
    noise = np.random.default_rng(0).normal(size=40)
    comparison = compare({"x": mean_result(noise)}, {"x": mean_result(noise + 50)}, num_samples=99)["x"]
    assert comparison.p_value == 0.01


def test_same_system_twice() -> None:
    results = {"x": mean_result(np.arange(10.0))}
    comparison = compare(results, results)["x"]
    assert (comparison.difference, comparison.p_value) == (0.0, 1.0)
    assert (comparison.interval.low, comparison.interval.high) == (0.0, 0.0)


def test_seeded() -> None:
    results = {"x": mean_result(np.random.default_rng(0).normal(size=50))}
    assert confidence_intervals(results, 100, seed=1) == confidence_intervals(results, 100, seed=1)
    assert confidence_intervals(results, 100, seed=1) != confidence_intervals(results, 100, seed=2)


def test_errors() -> None:
    results = {"x": mean_result(np.arange(4.0))}
    with pytest.raises(CapjaxError, match="at least 2"):
        confidence_intervals(results, num_samples=1)
    with pytest.raises(CapjaxError, match="between 0 and 1"):
        confidence_intervals(results, confidence=95)
    with pytest.raises(CapjaxError, match="same images"):
        compare(results, {"x": mean_result(np.arange(5.0))})
