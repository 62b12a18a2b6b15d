"""Sampling: frequencies match the distribution, a caption depends on its image alone, top-k 1 is greedy."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from capjax.decoding import DecoderSettings, image_keys
from capjax.decoding.sampling import _invert, draw_tokens, keys_of_images

PAIRS = DecoderSettings(method="sample", max_length=2)


def plain_distribution(log_probs, allowed, settings):
    """Temperature, then the k most probable, then the smallest set that makes up p: in plain Python."""
    weights = {token: math.exp(log_probs[token] / settings.temperature) for token in allowed}
    ranked = sorted(weights, key=lambda token: -weights[token])
    ranked = ranked[: settings.top_k or None]
    total = sum(weights[token] for token in ranked)
    kept, mass = [], 0.0
    while ranked and (mass < settings.top_p or not kept):
        kept.append(ranked.pop(0))
        mass += weights[kept[-1]] / total
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


def plain_caption_distribution(toy, table, settings):
    """Return the probability of every caption of at most two tokens."""

    def continuations(sentence):
        log_probs = toy.next_log_probs(table, sentence)
        return plain_distribution(log_probs, toy.allowed_tokens(sentence, settings), settings)

    captions = {}
    for first, p_first in continuations(()).items():
        if first == toy.special_ids.end:
            captions[(first,)] = p_first
            continue
        for second, p_second in continuations((first,)).items():
            captions[(first, second)] = p_first * p_second
    return captions


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"allow_unk": True, "temperature": 0.6},
        {"temperature": 1.7, "top_k": 3, "min_length": 1},
        {"top_p": 0.7},
        {"top_k": 3, "top_p": 0.8, "temperature": 1.3, "must_not_contain": (5,)},
    ],
)
def test_frequencies_match_the_distribution(toy, rule):
    settings = dataclasses.replace(PAIRS, seed=11, num_captions=16, **rule)
    table = toy.random_tables(3, batch_size=1, scale=1.0)
    captions = toy.decode(settings, np.repeat(table, 256, axis=0))
    captions = list(itertools.chain.from_iterable(captions))
    expected = plain_caption_distribution(toy, table[0], settings)
    assert {tokens for tokens, _ in captions} <= set(expected)
    counts = [sum(tokens == caption for tokens, _ in captions) for caption in expected]
    assert chisquare(counts, [len(captions) * p for p in expected.values()]).pvalue > 0.01
    for tokens, log_prob in captions[:32]:  # of the model itself, whatever shaped the draw
        true = sum(toy.next_log_probs(table[0], tokens[:i])[token] for i, token in enumerate(tokens))
        assert log_prob == pytest.approx(true, abs=1e-5)


@pytest.mark.parametrize("rule", [{}, {"no_repeat_ngram_size": 2, "min_length": 3}])
def test_top_1_is_greedy_also_among_equals(toy, rule):
    greedy = DecoderSettings(max_length=8, **rule)
    sample = dataclasses.replace(greedy, method="sample", top_k=1, temperature=3.0, seed=5)
    # Whole numbers, so that the best token is often not unique; + 0.0 turns -0.0, which top_k ranks below 0.0, to 0.0.
    tables = np.round(toy.random_tables(9)) + 0.0
    assert toy.decode(sample, tables) == toy.decode(greedy, tables)


def test_a_caption_depends_on_seed_and_image_alone(toy):
    settings = DecoderSettings(method="sample", max_length=8, num_captions=2, seed=1)
    tables = toy.random_tables(2)
    ids = [581929, 42, 7, 391895]
    together = toy.decode(settings, tables, ids)
    reversed_ = toy.decode(settings, tables[::-1], ids[::-1])
    alone = [toy.decode(settings, tables[i : i + 1], ids[i : i + 1])[0] for i in range(4)]
    assert together == reversed_[::-1] == alone
    assert together != toy.decode(settings, tables, [1, 2, 3, 4])
    assert together != toy.decode(dataclasses.replace(settings, seed=2), tables, ids)
    for (_, first), (_, second) in together:
        assert first >= second


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_seed_gives_the_same_keys_as_data_of_a_program(seed):
    ids = [0, 5, 2**32 - 1]
    found = jax.jit(keys_of_images)(np.uint32(seed), np.asarray(ids, np.uint32))
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(image_keys(seed, ids)))


def test_draws_from_a_large_vocabulary():
    weights = np.random.default_rng(0).gamma(0.5, size=23)
    weights[[0, 9, 22]] = 0.0
    with np.errstate(divide="ignore"):
        logits = np.log(weights).astype(np.float32) - 40.0
    keys = image_keys(3, np.arange(20_000))
    draw = jax.jit(lambda keys, row: draw_tokens(keys, jnp.broadcast_to(row, (20_000, 23)), block_size=5))
    counts = np.bincount(draw(keys, logits), minlength=23)
    possible = weights > 0
    assert counts[~possible].tolist() == [0, 0, 0]
    assert chisquare(counts[possible], 20_000 * weights[possible] / weights.sum()).pvalue > 0.01


def test_what_has_no_weight_is_not_drawn_where_a_sum_grows_by_its_rounding():
    generator = np.random.default_rng(0)
    weights = generator.random(1000).astype(np.float32) * (generator.random(1000) < 0.5)
    weights[-1] = 1.0
    cumulative = np.asarray(jnp.cumsum(jnp.asarray(weights)[None], axis=-1)[0])
    uniform = cumulative[:-1] / cumulative[-1]  # what is added, and what grows by itself, begins at one of these
    drawn = jax.jit(_invert)(jnp.broadcast_to(weights, (999, 1000)), uniform)
    assert (weights[drawn] > 0).all()


def test_what_has_no_weight_is_not_drawn_by_the_largest_number_either():
    generator = np.random.default_rng(0)
    weights = generator.random((2000, 1000)).astype(np.float32) * (generator.random((2000, 1000)) < 0.5)
    weights[:, 0] = weights[:, 667:] = 0.0
    drawn = np.asarray(jax.jit(_invert)(weights, np.full(2000, 1 - 2**-23, np.float32)))
    assert (weights[np.arange(2000), drawn] > 0).all()
