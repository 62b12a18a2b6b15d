"""A toy decoder for search tests, and searches over it in plain Python that share no code with capjax.

The decoder's logits depend on the whole sentence so far: a hash of it picks a row of a random table [S, V]. Tables
are arguments of the compiled searches, so that many of them run through one compilation.
"""

import functools
import math
import types
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.decoding import DecoderSettings, build_search, image_keys
from capjax.types import SpecialIds

PAD, UNK, START, END = range(4)
SPECIAL_IDS = SpecialIds(pad=PAD, unk=UNK, start=START, end=END)
VOCABULARY_SIZE = 7  # the special ids and three words: 4, 5, 6
NUM_STATES = 1009


def random_tables(seed: int, batch_size: int = 4, scale: float = 1.5) -> np.ndarray:
    shape = (batch_size, NUM_STATES, VOCABULARY_SIZE)
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def next_state(state, token):
    return (31 * state + 7 * token + 1) % NUM_STATES


def decode_step(carry, tokens):
    tables, state = carry
    state = next_state(state, tokens)
    return (tables, state), jax.vmap(lambda table, state: table[state])(tables, state)


def initial_carry(tables):
    return jnp.asarray(tables), jnp.zeros(len(tables), jnp.int32)


@functools.cache
def compiled(settings: DecoderSettings):
    search = build_search(settings, SPECIAL_IDS)
    return jax.jit(lambda tables, keys: search(decode_step, initial_carry(tables), keys))


def decode(settings: DecoderSettings, tables: np.ndarray, image_ids=None):
    """Run capjax's search; returns for every sentence a list of (tokens, log-probability), and checks the layout."""
    image_ids = np.arange(len(tables)) if image_ids is None else image_ids
    hypotheses = jax.device_get(compiled(settings)(tables, image_keys(settings.seed, image_ids)))
    assert hypotheses.tokens.shape == (len(tables), settings.num_captions, settings.max_length)
    sentences = []
    for tokens, log_probs, lengths in zip(*hypotheses, strict=True):
        rows = []
        for row, log_prob, length in zip(tokens.tolist(), log_probs.tolist(), lengths.tolist(), strict=True):
            assert row[length:] == [PAD] * (settings.max_length - length)
            assert END not in row[: length - 1]
            rows.append((tuple(row[:length]), log_prob))
        sentences.append(rows)
    return sentences


def next_log_probs(table: np.ndarray, sentence: tuple[int, ...]) -> list[float]:
    state = next_state(0, START)
    for token in sentence:
        state = next_state(state, token)
    logits = [float(value) for value in table[state]]
    log_normalizer = math.log(sum(math.exp(value) for value in logits))
    return [value - log_normalizer for value in logits]


def allowed_tokens(sentence: tuple[int, ...], settings: DecoderSettings) -> list[int]:
    size = settings.no_repeat_ngram_size
    allowed = []
    for token in range(VOCABULARY_SIZE):
        longer = (*sentence, token)
        ngrams = [longer[i : i + size] for i in range(len(longer) - size + 1)] if size else []
        if token in (PAD, START) or (token == UNK and not settings.allow_unk) or token in settings.must_not_contain:
            continue
        if (token == END and len(sentence) < settings.min_length) or (ngrams and ngrams[-1] in ngrams[:-1]):
            continue
        allowed.append(token)
    return allowed or [END]


def constraints_met(sentence: tuple[int, ...], settings: DecoderSettings) -> frozenset[int]:
    sets = [item if isinstance(item, tuple) else (item,) for item in settings.must_contain]
    return frozenset(i for i, alternatives in enumerate(sets) if set(alternatives) & set(sentence))


def is_complete(sentence: tuple[int, ...], settings: DecoderSettings) -> bool:
    ended = sentence[-1:] == (END,) or len(sentence) == settings.max_length
    return ended and len(constraints_met(sentence, settings)) == len(settings.must_contain)


def length_penalty(length: int, settings: DecoderSettings) -> float:
    base = (5 + length) / (5 + 1) if settings.length_formula == "gnmt" else length
    return base**settings.length_penalty


def exhaustive_search(table: np.ndarray, settings: DecoderSettings) -> dict[tuple[int, ...], tuple[float, float]]:
    """Return every sentence that the settings allow: tokens -> (log-probability, length-penalised)."""
    found = {}
    unfinished = [((), 0.0)]
    while unfinished:
        sentence, log_prob = unfinished.pop()
        log_probs = next_log_probs(table, sentence)
        for token in allowed_tokens(sentence, settings):
            longer, total = (*sentence, token), log_prob + log_probs[token]
            if is_complete(longer, settings):
                found[longer] = total, total / length_penalty(len(longer), settings)
            elif token != END and len(longer) < settings.max_length:
                unfinished.append((longer, total))
    return found


def beam_search(table: np.ndarray, settings: DecoderSettings) -> list[tuple[tuple[int, ...], float]]:
    """Search with (groups of, constraint states of) narrow beams, always to the last step; returns the n best."""
    num_groups = settings.num_groups if settings.method == "diverse_beam" else 1
    beam_size, per_group = settings.beam_size // num_groups, math.ceil(settings.num_captions / num_groups)
    live = [[((), 0.0, 0.0)] for _ in range(num_groups)]
    finished = [[] for _ in range(num_groups)]
    for _ in range(settings.max_length):
        said = Counter()
        for group in range(num_groups):
            arrivals = defaultdict(list)
            for sentence, log_prob, score in live[group]:
                log_probs = next_log_probs(table, sentence)
                for token in allowed_tokens(sentence, settings):
                    longer, gain = (*sentence, token), log_probs[token]
                    candidate = longer, log_prob + gain, score + gain - settings.diversity_strength * said[token]
                    met = constraints_met(longer, settings)
                    if token != END or len(met) == len(settings.must_contain):
                        arrivals[met].append(candidate)
            survivors = [
                candidate
                for candidates in arrivals.values()
                for candidate in sorted(candidates, key=lambda candidate: -candidate[2])[:beam_size]
            ]
            said.update(sentence[-1] for sentence, _, _ in survivors)
            finished[group] += [candidate for candidate in survivors if is_complete(candidate[0], settings)]
            live[group] = [candidate for candidate in survivors if candidate[0][-1] != END]
    best = []
    for candidates in finished:
        best += sorted(candidates, key=lambda c: -c[2] / length_penalty(len(c[0]), settings))[:per_group]
    best.sort(key=lambda c: -c[1] / length_penalty(len(c[0]), settings))
    return [(sentence, log_prob) for sentence, log_prob, _ in best[: settings.num_captions]]


@pytest.fixture(scope="session")
def toy() -> types.SimpleNamespace:
    """The toy decoder, capjax's searches over it (`compiled`, `decode`), and the plain-Python ones."""
    return types.SimpleNamespace(
        special_ids=SPECIAL_IDS,
        random_tables=random_tables,
        decode_step=decode_step,
        initial_carry=initial_carry,
        compiled=compiled,
        decode=decode,
        next_log_probs=next_log_probs,
        allowed_tokens=allowed_tokens,
        exhaustive_search=exhaustive_search,
        beam_search=beam_search,
        length_penalty=length_penalty,
    )
