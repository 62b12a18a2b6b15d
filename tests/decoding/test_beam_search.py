"""Beam search against exhaustive search, against a plain-Python beam, and against greedy search."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.decoding import DecoderSettings, build_search
from capjax.types import SpecialIds

many_tables = hypothesis_settings(max_examples=6, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)

# Three words and five tokens at most: a beam of 128 holds the 108 candidates of the last but one step, and whatever is
# cut at the last step is of one length. With UNK as a fourth word, the state beams of "all" hold 66 at most.
EXHAUSTIVE = DecoderSettings(method="beam", beam_size=128, num_captions=5, max_length=5)
RULES = {
    "plain": {},
    "gnmt": {"length_penalty": 1.0},
    "mean": {"length_penalty": 1.0, "length_formula": "plain"},
    "shorter": {"length_penalty": -0.8},
    "minimum": {"min_length": 3, "length_penalty": 0.6},
    "bigrams": {"no_repeat_ngram_size": 2},
    "once": {"no_repeat_ngram_size": 1, "min_length": 4},  # runs out of words: END is all that is left
    "trigrams": {"no_repeat_ngram_size": 3, "min_length": 5},
    "without": {"must_not_contain": (5,), "allow_unk": True},
    "contains": {"must_contain": (6,), "length_penalty": 0.7},
    "either": {"must_contain": ((4, 6), 5), "no_repeat_ngram_size": 2, "min_length": 2, "length_penalty": 1.2},
    "all": {"must_contain": (4, 5, 6), "allow_unk": True, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("rule", RULES)
@many_tables
@given(seed=seeds, scale=st.sampled_from([0.3, 1.5, 4.0]))
def test_wide_beam_is_exhaustive_search(toy, rule, seed, scale):
    settings = dataclasses.replace(EXHAUSTIVE, **RULES[rule])
    tables = toy.random_tables(seed, scale=scale)
    for table, captions in zip(tables, toy.decode(settings, tables), strict=True):
        everything = toy.exhaustive_search(table, settings)
        captions = [(tokens, log_prob) for tokens, log_prob in captions if log_prob > -np.inf]
        assert len({tokens for tokens, _ in captions}) == len(captions) == min(settings.num_captions, len(everything))
        for tokens, log_prob in captions:
            assert log_prob == pytest.approx(everything[tokens][0], abs=1e-4)
        ranking = sorted((penalised for _, penalised in everything.values()), reverse=True)
        found = [everything[tokens][1] for tokens, _ in captions]
        assert found == pytest.approx(ranking[: len(found)], abs=1e-4)


@pytest.mark.parametrize(
    "beam_size, rule",
    [(3, {}), (2, {"length_penalty": 1.0}), (3, {"no_repeat_ngram_size": 2, "min_length": 2, "length_penalty": 0.5})],
)
@many_tables
@given(seed=seeds)
def test_narrow_beam_is_the_plain_python_beam(toy, beam_size, rule, seed):
    settings = DecoderSettings(method="beam", beam_size=beam_size, num_captions=2, max_length=8, **rule)
    tables = toy.random_tables(seed)
    for table, captions in zip(tables, toy.decode(settings, tables), strict=True):
        expected = toy.beam_search(table, settings)
        assert [tokens for tokens, _ in captions] == [tokens for tokens, _ in expected]
        assert [log_prob for _, log_prob in captions] == pytest.approx([log_prob for _, log_prob in expected], abs=1e-4)


@pytest.mark.parametrize(
    "rule, alpha", [({}, 1.0), ({"no_repeat_ngram_size": 1, "min_length": 5}, 0.0), ({"allow_unk": True}, -1.0)]
)
@many_tables
@given(seed=seeds)
def test_beam_of_one_is_greedy(toy, rule, alpha, seed):
    greedy = DecoderSettings(max_length=8, **rule)
    beam = dataclasses.replace(greedy, method="beam", beam_size=1, length_penalty=alpha)
    tables = toy.random_tables(seed)
    for by_beam, by_greedy in zip(toy.decode(beam, tables), toy.decode(greedy, tables), strict=True):
        assert by_beam[0][0] == by_greedy[0][0]
        assert by_beam[0][1] == pytest.approx(by_greedy[0][1], abs=1e-5)


def test_missing_captions_are_empty(toy):
    settings = DecoderSettings(
        method="beam", beam_size=4, num_captions=4, max_length=2, no_repeat_ngram_size=1, must_not_contain=(5, 6)
    )
    [captions] = toy.decode(settings, toy.random_tables(0, batch_size=1))
    assert {tokens for tokens, _ in captions[:2]} == {(3,), (4, 3)}
    assert captions[2:] == [((), -np.inf)] * 2


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_search_ends_when_all_sentences_are_done_and_traces_once(alpha):
    # Sentence b says its word b times and then END, almost surely.
    steps, traces = [], []

    def decode_step(carry, tokens):
        jax.debug.callback(lambda: steps.append(1))
        remaining = carry - 1
        certain = jnp.where(remaining < 0, 3, 4)
        return remaining, 30.0 * jax.nn.one_hot(certain, 7)

    settings = DecoderSettings(method="beam", beam_size=3, max_length=20, length_penalty=alpha)
    search = build_search(settings, SpecialIds())

    @jax.jit
    def run(remaining):
        traces.append(1)
        return search(decode_step, remaining, None)

    for lengths, expected in [([1, 4, 2], 5), ([0, 0, 0], 1), ([7, 1, 1], 8)]:
        steps.clear()
        hypotheses = jax.block_until_ready(run(jnp.array(lengths)))
        jax.effects_barrier()
        assert hypotheses.lengths[:, 0].tolist() == [length + 1 for length in lengths]
        assert len(steps) == expected
    assert len(traces) == 1


@pytest.mark.parametrize(
    "alpha, probs, num_words",
    [
        (1.0, (0.6, 0.2, 0.2), 6),  # log 0.2 over 7 tokens against log 0.6 over one
        (-1.0, (0.3, 0.55, 0.15), 1),  # log 0.55 times 2 tokens against log 0.3 times one: 0.55^2 > 0.3
    ],
)
def test_a_longer_caption_may_win_late(alpha, probs, num_words):
    # At first END, the words 4 and 5 have these probabilities; later words, and END after `num_words`, come for free.
    def decode_step(step, tokens):
        first = jnp.log(jnp.array([0, 0, 0, *probs, 0]))
        later = 30.0 * jax.nn.one_hot(jnp.where(step < num_words, 4, 3), 7)
        return step + 1, jnp.where(step[:, None] == 0, first[None], later)

    settings = DecoderSettings(method="beam", beam_size=2, max_length=8, length_penalty=alpha, length_formula="plain")
    hypotheses = build_search(settings, SpecialIds())(decode_step, jnp.zeros(1, jnp.int32), None)
    assert hypotheses.tokens[0, 0].tolist() == [4] * num_words + [3] + [0] * (7 - num_words)
    assert hypotheses.log_probs[0, 0] == pytest.approx(np.log(probs[1]), abs=1e-4)
