"""ROUGE-L on cases worked by hand and against the textbook table for common subsequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capjax.metrics.rouge_l import rouge_l

words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


def lcs_by_table(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(words, words)
def test_one_reference(caption: list[str], reference: list[str]) -> None:
    common = lcs_by_table(caption, reference)
    precision, recall = common / len(caption), common / len(reference)
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if common else 0.0
    assert rouge_l([caption], [[reference]]).corpus == pytest.approx(expected)


def test_best_precision_and_best_recall_of_different_references() -> None:
    caption, references = "a b c d".split(), ["a b c d e f g h".split(), "a b".split()]
    assert rouge_l([caption], [references]).corpus == pytest.approx(1.0)


def test_empty_captions_match_each_other() -> None:
    assert rouge_l([[], [], ["a"]], [[[]], [["a"]], [[]]]).per_image.tolist() == [1.0, 0.0, 0.0]
