"""Diverse beam search against beam search and against plain Python."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.decoding import DecoderSettings

many_tables = hypothesis_settings(max_examples=6, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
CASES = [
    {"beam_size": 4, "num_groups": 2, "diversity_strength": 0.7, "num_captions": 2},
    {"beam_size": 3, "num_groups": 3, "diversity_strength": 2.0, "num_captions": 3, "length_penalty": 1.0},
    {"beam_size": 6, "num_groups": 3, "num_captions": 4, "no_repeat_ngram_size": 2, "min_length": 3},
    {"beam_size": 4, "num_groups": 2, "num_captions": 3, "must_contain": (5, (4, 6)), "length_penalty": 0.5},
]


@pytest.mark.parametrize("case", CASES)
@many_tables
@given(seed=seeds)
def test_groups_choose_as_in_plain_python(toy, case, seed):
    settings = DecoderSettings(method="diverse_beam", max_length=7, **case)
    tables = toy.random_tables(seed)
    for table, captions in zip(tables, toy.decode(settings, tables), strict=True):
        expected = toy.beam_search(table, settings)
        assert [tokens for tokens, _ in captions] == [tokens for tokens, _ in expected]
        assert [log_prob for _, log_prob in captions] == pytest.approx([log_prob for _, log_prob in expected], abs=1e-4)


@many_tables
@given(seed=seeds)
def test_one_group_is_beam_search(toy, seed):
    beam = DecoderSettings(method="beam", beam_size=3, num_captions=3, max_length=7, length_penalty=0.6)
    diverse = dataclasses.replace(beam, method="diverse_beam", num_groups=1, diversity_strength=5.0)
    tables = toy.random_tables(seed)
    assert toy.decode(diverse, tables) == toy.decode(beam, tables)


def test_strength_makes_groups_differ(toy):
    tables = toy.random_tables(5, batch_size=16)
    distinct = []
    for strength in (0.0, 4.0):
        settings = DecoderSettings(
            method="diverse_beam", beam_size=3, num_groups=3, num_captions=3, max_length=7, diversity_strength=strength
        )
        distinct.append([len({tokens for tokens, _ in captions}) for captions in toy.decode(settings, tables)])
    assert set(distinct[0]) == {1}
    assert set(distinct[1]) == {3}
