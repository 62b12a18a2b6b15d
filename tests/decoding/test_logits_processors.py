"""Constraints and distribution shapers against plain Python on arbitrary histories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.decoding.logits_processors import (
    LogitsProcessor,
    chain,
    forbid_repeated_ngrams,
    forbid_tokens,
    keep_top_k,
    keep_top_p,
    require_min_length,
    scale_temperature,
)
from capjax.errors import CapjaxError

LENGTH, VOCABULARY_SIZE = 9, 6
many = hypothesis_settings(max_examples=50, deadline=None, derandomize=True, database=None)
LOGITS = np.array([[0.5, -1.0, 2.0, 0.5, 0.0, 2.0]], np.float32)


def kept(processor, logits=LOGITS, step=0):
    history = jnp.zeros((len(logits), LENGTH), jnp.int32)
    return np.isfinite(processor.process(history, jnp.int32(step), jnp.asarray(logits))).tolist()


blockers = {size: jax.jit(forbid_repeated_ngrams(size).process) for size in (1, 2, 3)}


@many
@given(st.sampled_from([1, 2, 3]), st.lists(st.lists(st.integers(3, 5), max_size=8), min_size=2, max_size=2))
def test_ngram_blocking(size, sentences):
    step = min(len(sentence) for sentence in sentences)
    history = np.zeros((2, LENGTH), np.int32)
    for row, sentence in zip(history, sentences, strict=True):
        row[:step] = sentence[:step]
    logits = np.arange(2 * VOCABULARY_SIZE, dtype=np.float32).reshape(2, VOCABULARY_SIZE)
    expected = logits.copy()
    for row, sentence in zip(expected, sentences, strict=True):
        said = [tuple(sentence[i : i + size]) for i in range(step - size + 1)]
        for token in range(VOCABULARY_SIZE):
            if (*sentence[:step], token)[step + 1 - size : step + 1] in said:
                row[token] = -np.inf
    np.testing.assert_array_equal(blockers[size](history, jnp.int32(step), logits), expected)


def test_ngrams_longer_than_the_sentence_block_nothing():
    assert kept(forbid_repeated_ngrams(LENGTH + 1), step=8) == [[True] * 6]


def test_forbidden_tokens_and_minimum_length():
    assert kept(forbid_tokens((0, 4))) == [[False, True, True, True, False, True]]
    assert kept(require_min_length(2, end=3), step=1) == [[True, True, True, False, True, True]]
    assert kept(require_min_length(2, end=3), step=2) == [[True] * 6]


def test_end_remains_where_everything_is_forbidden():
    first_row_alone = LogitsProcessor(
        lambda history, step, logits: logits.at[0].set(-jnp.inf), lambda _: VOCABULARY_SIZE
    )
    process = chain([forbid_tokens(range(5)), first_row_alone], end=3)
    logits = np.repeat(LOGITS, 2, axis=0)
    processed = process(jnp.zeros((2, LENGTH), jnp.int32), jnp.int32(0), jnp.asarray(logits))
    np.testing.assert_array_equal(processed[0], [-np.inf, -np.inf, -np.inf, 0.5, -np.inf, -np.inf])
    np.testing.assert_array_equal(processed[1], [-np.inf] * 5 + [2.0])


@pytest.mark.parametrize("size", [1, 2])
def test_a_sentence_that_has_said_everything_ends(size):
    """Nothing but what was said is allowed, and END is forbidden too: the look whether a token is left is due."""
    history = jnp.asarray([[4, 4, 5, 5, 4, 0, 0, 0, 0], [4, 4, 4, 4, 4, 0, 0, 0, 0]], jnp.int32)
    process = chain([forbid_tokens((0, 1, 2)), require_min_length(9, end=3), forbid_repeated_ngrams(size)], end=3)
    processed = process(history, jnp.int32(5), jnp.asarray(np.repeat(LOGITS, 2, axis=0)))
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in processed] == [[3], [5]]


def test_temperature_is_a_power_of_the_probabilities():
    scaled = scale_temperature(0.7).process(jnp.zeros((1, LENGTH), jnp.int32), jnp.int32(0), jnp.asarray(LOGITS))
    warmed = jax.nn.softmax(scaled, axis=-1)
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(warmed, probs ** (1 / 0.7) / (probs ** (1 / 0.7)).sum(), rtol=1e-5)


@pytest.mark.parametrize("k, expected", [(1, [2]), (2, [2, 5]), (3, [0, 2, 5]), (4, [0, 2, 3, 5]), (99, range(6))])
def test_top_k_keeps_exactly_k(k, expected):
    assert np.flatnonzero(kept(keep_top_k(k))[0]).tolist() == list(expected)


@pytest.mark.parametrize("p, expected", [(1e-9, [1]), (0.39, [1]), (0.41, [1, 3]), (0.75, [0, 1, 3]), (1.0, range(4))])
def test_top_p_keeps_the_smallest_sufficient_set(p, expected):
    logits = np.log(np.array([[0.2, 0.4, 0.1, 0.3]], np.float32))
    assert np.flatnonzero(kept(keep_top_p(p), logits)[0]).tolist() == list(expected)


nuclei = {p: LogitsProcessor(jax.jit(keep_top_p(p).process), lambda _: 0) for p in (0.1, 0.6, 0.95)}


@many
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(nuclei)))
def test_top_p_threshold_is_that_of_sorting(seed, p):
    logits = (3 * np.random.default_rng(seed).normal(size=(1, 40))).astype(np.float32)
    probs = np.exp(logits[0].astype(np.float64))
    probs /= probs.sum()
    ranked = np.argsort(-probs)
    mass = np.cumsum(probs[ranked])
    if np.min(np.abs(mass - p)) > 1e-6:  # not a matter of rounding
        expected = sorted(ranked[: np.searchsorted(mass, p) + 1].tolist())
        assert np.flatnonzero(kept(nuclei[p], logits)[0]).tolist() == expected


@pytest.mark.parametrize("second, expected", [(1.0, [0, 2, 3]), (1 - 1e-3, [0, 3]), (1 - 1e-6, [0, 3])])
def test_top_p_keeps_equals_together_and_nothing_below(second, expected):
    logits = np.array([[1.0, 0.0, second, 1.0, -np.inf]], np.float32)
    assert np.flatnonzero(kept(keep_top_p(0.3), logits)[0]).tolist() == expected


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(CapjaxError, match=r"\[6\].*vocabulary of 6"):
        kept(forbid_tokens((0, 6)))
