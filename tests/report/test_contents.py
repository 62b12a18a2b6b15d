"""The rows worth showing are the right ones, and texts and numbers are fit to print."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capjax.report.contents import CaptionRow, extremes, is_number, one_line, spread


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
