"""Greedy search against plain Python, and the promises of every rollout."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.decoding import DecoderSettings
from capjax.decoding.greedy import greedy_search

many_tables = hypothesis_settings(max_examples=10, deadline=None, derandomize=True, database=None)
RULES = [
    {},
    {"no_repeat_ngram_size": 2, "min_length": 4},
    {"allow_unk": True, "must_not_contain": (4,)},
    {"no_repeat_ngram_size": 1, "min_length": 8},
    {"must_not_contain": (4, 5, 6), "min_length": 2},  # no word, and END too early: the sentence ends all the same
]


def plain_greedy(toy, table, settings):
    sentence, log_prob = (), 0.0
    while len(sentence) < settings.max_length and sentence[-1:] != (toy.special_ids.end,):
        log_probs = toy.next_log_probs(table, sentence)
        token = max(toy.allowed_tokens(sentence, settings), key=lambda token: log_probs[token])
        sentence, log_prob = (*sentence, token), log_prob + log_probs[token]
    return sentence, log_prob


@pytest.mark.parametrize("rule", RULES)
@many_tables
@given(seed=st.integers(0, 2**32 - 1))
def test_greedy_is_plain_greedy(toy, rule, seed):
    settings = DecoderSettings(max_length=8, **rule)
    tables = toy.random_tables(seed)
    for table, [(tokens, log_prob)] in zip(tables, toy.decode(settings, tables), strict=True):
        expected_tokens, expected_log_prob = plain_greedy(toy, table, settings)
        assert tokens == expected_tokens
        assert log_prob == pytest.approx(expected_log_prob, abs=1e-4)


def test_equal_logits_give_the_lowest_id(toy):
    step = lambda carry, tokens: (carry, jnp.zeros((2, 7)))  # noqa: E731
    hypotheses = greedy_search(step, jnp.zeros(2), toy.special_ids, max_length=2)
    assert hypotheses.tokens[:, 0].tolist() == [[0, 0], [0, 0]]


def test_a_sentence_without_end_keeps_its_score(toy):
    step = lambda carry, tokens: (carry, jnp.log(jnp.array([[0.0, 0.0, 0.0, 0.1, 0.6, 0.3]])))  # noqa: E731
    hypotheses = greedy_search(step, jnp.zeros(1), toy.special_ids, max_length=20)
    assert hypotheses.tokens[0, 0].tolist() == [4] * 20
    assert hypotheses.lengths[0, 0] == 20
    assert hypotheses.log_probs[0, 0] == pytest.approx(20 * math.log(0.6), rel=1e-5)


def test_ends_when_all_sentences_ended(toy):
    steps = []

    def decode_step(remaining, tokens):
        jax.debug.callback(lambda: steps.append(1))
        return remaining - 1, 30.0 * jax.nn.one_hot(jnp.where(remaining < 1, 3, 4), 7)

    hypotheses = greedy_search(decode_step, jnp.array([2, 5]), toy.special_ids)
    jax.block_until_ready(hypotheses)
    jax.effects_barrier()
    assert hypotheses.lengths[:, 0].tolist() == [3, 6]
    assert len(steps) == 6
