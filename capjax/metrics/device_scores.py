"""CIDEr-D, BLEU-4 and the health of captions as arrays in, arrays out: rewards inside of a compiled training step.

No n-gram is ever built: two of them are equal where their words are, one after the other, so every position of a
caption is compared with every position of another. For captions that is less work than a sort. A sum over the different
n-grams of a caption is a sum over its positions, each divided by how often its n-gram occurs.

Equal to `capjax.metrics.cider.cider_d` and `capjax.metrics.bleu.bleu`, and so to the published programs, to float32's
rounding. A caption is a row of numbers of words, -1 behind its last. N images have K captions and R references each.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from capjax.metrics.ngram_trie import NgramTrie, idf_of_ngrams
from capjax.metrics.ngrams import MAX_ORDER

_SIGMA = 6.0
_SMALL, _TINY = 1e-9, 1e-15  # the COCO scorer's, see `capjax.metrics.bleu`


class Matches(NamedTuple):
    """How often the n-grams that begin at each position of captions occur, by order; 0 where there is none.

    Attributes:
        own: in the caption itself.
        references: in each reference.
    """

    own: tuple[Int[Array, "N K _"], ...]
    references: tuple[Int[Array, "N K R _"], ...]


def match(captions: Int[Array, "N K L"], references: Int[Array, "N R T"]) -> Matches:
    """Count the n-grams of captions in themselves and in their image's references."""
    own = _count(captions[:, :, :, None], captions[:, :, None, :])
    among = _count(captions[:, :, None, :, None], references[:, None, :, None, :])
    return Matches(own, among)


def _count(ours: Int[Array, "*#batch L 1"], theirs: Int[Array, "*#batch 1 T"]) -> tuple[Int[Array, "..."], ...]:
    words = (ours == theirs) & (ours >= 0)
    equal, counts = words, []
    for order in range(MAX_ORDER):
        if order:
            equal = equal[..., :-1, :-1] & words[..., order:, order:]
        counts.append(jnp.sum(equal, axis=-1, dtype=jnp.int32))
    return tuple(counts)


def cider_d(
    captions: Int[Array, "N K L"],
    matches: Matches,
    references: Int[Array, "N R T"],
    reference_norms: Float[Array, "N R 4"],
    trie: NgramTrie,
) -> Float[Array, "N K"]:
    """Compute CIDEr-D (Vedantam, Zitnick and Parikh 2015, equation 4), 0 to 10.

    Args:
        captions: numbers of words.
        matches: of the captions with the references.
        references: numbers of words.
        reference_norms: length of each reference's tf-idf vector, by order.
        trie: document frequencies.
    """
    similarity = 0.0
    for order, idf in enumerate(idf_of_ngrams(trie, captions)):
        own = matches.own[order].astype(jnp.float32)
        there = matches.references[order].astype(jnp.float32)
        weights = jnp.where(own > 0, idf**2, 0.0)
        norms = jnp.sqrt(jnp.sum(own * weights, axis=-1))[:, :, None] * reference_norms[:, None, :, order]
        share = weights / jnp.maximum(own, 1.0)
        dots = jnp.sum(share[:, :, None] * jnp.minimum(own[:, :, None], there) * there, axis=-1)
        similarity += jnp.where(norms > 0, dots / jnp.where(norms > 0, norms, 1.0), 0.0)
    lengths, reference_lengths = num_words(captions), num_words(references)
    bigrams, reference_bigrams = jnp.maximum(lengths - 1, 0), jnp.maximum(reference_lengths - 1, 0)
    difference = (bigrams[:, :, None] - reference_bigrams[:, None, :]).astype(jnp.float32)
    similarity *= jnp.exp(-(difference**2) / (2 * _SIGMA**2))
    exists = (reference_lengths > 0).astype(jnp.float32)
    total = jnp.sum(similarity * exists[:, None], axis=-1)
    return 10.0 * total / (MAX_ORDER * jnp.maximum(jnp.sum(exists, axis=-1), 1.0))[:, None]


def bleu_4(captions: Int[Array, "N K L"], matches: Matches, references: Int[Array, "N R T"]) -> Float[Array, "N K"]:
    """Compute the BLEU-4 of each caption by itself (Papineni et al. 2002, as the COCO scorer does), 0 to 1."""
    lengths, reference_lengths = num_words(captions), num_words(references)
    log_precision = 0.0
    for order in range(MAX_ORDER):
        own = matches.own[order].astype(jnp.float32)
        most = jnp.max(matches.references[order], axis=2).astype(jnp.float32)
        correct = jnp.sum(jnp.minimum(own, most) / jnp.maximum(own, 1.0), axis=-1)
        guesses = jnp.maximum(lengths - order, 0).astype(jnp.float32)
        log_precision += jnp.log(correct + _TINY) - jnp.log(guesses + _SMALL)
    # The closest reference, the shorter of two equally close.
    distance = jnp.abs(lengths[:, :, None] - reference_lengths[:, None, :])
    missing = (reference_lengths == 0)[:, None, :]
    longest = references.shape[-1] + captions.shape[-1] + 1
    ranks = jnp.where(missing, longest**2, distance * longest + reference_lengths[:, None, :])
    closest = (jnp.min(ranks, axis=-1) % longest).astype(jnp.float32)
    ratio = (lengths.astype(jnp.float32) + _TINY) / (closest + _SMALL)
    return jnp.exp(log_precision / MAX_ORDER + jnp.minimum(0.0, 1.0 - 1.0 / ratio))


def num_words(captions: Int[Array, "*batch L"]) -> Int[Array, "*batch"]:
    """Count the words of captions."""
    return jnp.sum(captions >= 0, axis=-1, dtype=jnp.int32)


def repeats_itself(captions: Int[Array, "*batch L"]) -> Bool[Array, "*batch"]:
    """Tell whether a word or a word pair stands twice in a row, or a word triple twice anywhere.

    The measure of `capjax.metrics.caption_health.repeats_itself`.
    """
    words = (captions[..., :, None] == captions[..., None, :]) & (captions >= 0)[..., None]
    pairs = words[..., :-1, :-1] & words[..., 1:, 1:]
    triples = pairs[..., :-1, :-1] & words[..., 2:, 2:]
    once, twice = jnp.diagonal(words, 1, -2, -1), jnp.diagonal(pairs, 2, -2, -1)
    anywhere = jnp.any(jnp.triu(triples, 1), axis=(-2, -1))
    return jnp.any(once, axis=-1) | jnp.any(twice, axis=-1) | anywhere
