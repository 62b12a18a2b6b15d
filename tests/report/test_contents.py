"""The rows worth showing are the right ones, and texts and numbers are fit to print."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capjax.report.contents import CaptionRow, extremes, is_number, one_line, sample, spread
from capjax.report.explanation import Explanation


def row(image_id: int, score: float | None) -> CaptionRow:
    return CaptionRow(image_id, f"{image_id}.jpg", None, "a dog", scores={} if score is None else {"CIDEr-D": score})


def test_one_line_keeps_letters_and_drops_what_breaks_a_line() -> None:
    assert one_line("  a\ndog\t\x00 é日本 \ud800!") == "a dog é日本 !"
    assert one_line("🐕‍🦺") == "🐕‍🦺"  # joined emoji stay joined


@pytest.mark.parametrize("value", [0, 1.5, np.float32(0.5), np.float64(2), np.int64(3)])
def test_numbers_of_python_and_numpy_are_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [None, "1", math.nan, math.inf, np.float32("nan"), [1.0]])
def test_what_cannot_be_printed_as_a_number_is_none(value: object) -> None:
    assert not is_number(value)


def test_extremes_are_the_ends_and_the_middle_of_the_order() -> None:
    rows = [row(index, score) for index, score in enumerate([5, 1, None, 9, 3, float("nan"), 7, 2, 8, 4, 6])]
    groups = {
        name: [found.scores["CIDEr-D"] for found in chosen] for name, chosen in extremes(rows, "CIDEr-D", 2).items()
    }
    assert groups == {"best": [9, 8], "median": [6, 5], "worst": [2, 1]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), max_size=30), st.integers(1, 6))
def test_no_row_is_in_two_groups(scores: list[float], count: int) -> None:
    groups = extremes([row(index, score) for index, score in enumerate(scores)], "CIDEr-D", count)
    chosen = [found.image_id for group in groups.values() for found in group]
    assert len(chosen) == len(set(chosen)) == 3 * min(count, len(scores) // 3)


def test_spread_goes_from_best_to_worst() -> None:
    rows = [row(index, index) for index in range(101)]
    assert [found.image_id for found in spread(rows, 5)] == [100, 75, 50, 25, 0]
    assert [found.image_id for found in spread(rows, 1)] == [100]
    assert len(spread(rows, 500)) == 101


def test_spread_without_scores_keeps_the_order() -> None:
    assert [found.image_id for found in spread([row(index, None) for index in range(9)], 3)] == [0, 4, 8]


def test_a_sample_of_few_rows_is_all_of_them() -> None:
    rows = [row(index, score) for index, score in enumerate([3, None, 1, 2])]
    assert sample(rows, 4, "CIDEr-D") == rows


def test_a_sample_has_the_ends_the_middle_the_ailing_and_an_even_spread_of_the_others() -> None:
    scores = np.random.default_rng(0).permutation(20_000)
    ailing = {7: ("repetition",), 11: ("repetition", "empty")} | {index: ("empty",) for index in range(500, 20_000, 9)}
    rows = [replace(row(index, int(score)), ailments=ailing.get(index, ())) for index, score in enumerate(scores)]
    found = sample(rows, 200, "CIDEr-D")
    assert len(found) == 200 and [r.image_id for r in found] == sorted({r.image_id for r in found})
    shown = {r.scores["CIDEr-D"] for r in found}
    assert shown >= {*range(10), *range(9_995, 10_005), *range(19_990, 20_000)}
    empty = [r.image_id for r in found if "empty" in r.ailments]
    assert {7, 11} <= {r.image_id for r in found} and 50 <= len(empty) <= 70
    assert max(np.diff(empty)) < 1_000  # not the first fifty
    assert max(np.diff(sorted(shown))) < 2 * 20_000 / (200 - 3 * 10 - 50 - 2)
    for group in extremes(rows, "CIDEr-D", 4).values():  # which the page shows by themselves
        assert {r.image_id for r in group} <= {r.image_id for r in found}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.floats(0, 10), st.sets(st.sampled_from("abcdefghijkl"))), max_size=150),
    st.integers(1, 60),
)
def test_a_sample_is_as_large_as_asked_for(captions: list[tuple[float | None, set[str]]], count: int) -> None:
    rows = [replace(row(i, score), ailments=tuple(of)) for i, (score, of) in enumerate(captions)]
    found = sample(rows, count, "CIDEr-D")
    assert len(found) == len({r.image_id for r in found}) == min(count, len(rows))
    least = extremes(rows, "CIDEr-D", count // 20).values()  # smaller groups lie inside of larger ones
    assert {r.image_id for group in least for r in group} <= {r.image_id for r in found}


def test_a_sample_has_what_is_explained() -> None:
    explanation = Explanation("a dog", (), None, "")
    rows = [replace(row(i, i), explanation=explanation if i % 71 == 5 else None) for i in range(1_000)]
    found = {shown.image_id for shown in sample(rows, 100, "CIDEr-D")}
    assert len(found) == 100 and set(range(5, 1_000, 71)) < found


def test_a_sample_without_scores_goes_evenly_over_the_data_set() -> None:
    found = sample([row(index, None) for index in range(1_001)], 11, "CIDEr-D")
    assert [r.image_id for r in found] == list(range(0, 1_001, 100))


def test_a_picture_may_be_read_when_it_is_shown() -> None:
    assert CaptionRow(1, "f", lambda: b"later", "a dog").picture() == b"later"
    assert CaptionRow(1, "f", b"now", "a dog").picture() == b"now"
    assert CaptionRow(1, "f", None, "a dog").picture() is None
