"""Constrained beam search: the words are there, the beams of its states are those of a plain-Python search."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.decoding import DecoderSettings

many_tables = hypothesis_settings(max_examples=6, deadline=None, derandomize=True, database=None)
CASES = [
    {"must_contain": (6,), "beam_size": 2, "num_captions": 2},
    {"must_contain": (4, 6), "beam_size": 3, "length_penalty": 1.0},
    {"must_contain": ((4, 5), 6), "must_not_contain": (4,), "beam_size": 2, "no_repeat_ngram_size": 3, "min_length": 4},
    {"must_contain": (4, 5, 6), "beam_size": 1, "max_length": 3},
]


@pytest.mark.parametrize("case", CASES)
@many_tables
@given(seed=st.integers(0, 2**32 - 1))
def test_state_beams_are_those_of_plain_python(toy, case, seed):
    settings = DecoderSettings(**{"method": "beam", "max_length": 7, **case})
    tables = toy.random_tables(seed)
    for table, captions in zip(tables, toy.decode(settings, tables), strict=True):
        expected = toy.beam_search(table, settings)
        assert [tokens for tokens, _ in captions] == [tokens for tokens, _ in expected]
        assert [log_prob for _, log_prob in captions] == pytest.approx([log_prob for _, log_prob in expected], abs=1e-4)
        for tokens, _ in captions:
            for item in settings.must_contain:
                assert set(tokens) & set(item if isinstance(item, tuple) else (item,))
            assert not set(tokens) & set(settings.must_not_contain)


def test_a_word_the_model_finds_impossible_leaves_no_caption(toy):
    tables = toy.random_tables(1, batch_size=2)
    tables[0, :, 6] = -float("inf")
    settings = DecoderSettings(method="beam", beam_size=2, max_length=4, must_contain=(6,))
    impossible, possible = toy.decode(settings, tables)
    assert impossible == [((), -float("inf"))]
    assert 6 in possible[0][0]
