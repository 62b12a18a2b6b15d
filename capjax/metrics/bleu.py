"""BLEU-1 to BLEU-4 (Papineni et al. 2002) as the COCO scorer computes them.

Clipped n-gram precisions, brevity penalty against the reference closest in length, and the COCO scorer's two small
constants, which keep empty captions from dividing by zero and single captions without a 4-gram match just above zero.
"""

import functools

import numpy as np
from jaxtyping import Float, Int

from capjax.metrics.metric_result import MetricResult, Reduced
from capjax.metrics.ngrams import MAX_ORDER, CountedCaptions, find, group_keys

_SMALL = 1e-9
_TINY = 1e-15

ReferenceMaxima = list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]


def reference_maxima(references: CountedCaptions, image_of_caption: Int[np.ndarray, " B"]) -> ReferenceMaxima:
    """Return for each order the sorted keys of (image, n-gram) and the largest count in one of its references."""
    maxima = []
    for order in references.orders:
        keys = group_keys(image_of_caption[order.caption], order.ngram)
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        firsts = np.flatnonzero(np.diff(keys, prepend=-1))
        maxima.append((keys[firsts], np.maximum.reduceat(order.count[by_key], firsts)))
    return maxima


def bleu(
    hypotheses: CountedCaptions,
    maxima: ReferenceMaxima,
    reference_lengths: Int[np.ndarray, " B"],
    image_of_caption: Int[np.ndarray, " B"],
) -> list[MetricResult]:
    """Return the results for BLEU-1 … BLEU-4.

    Args:
      hypotheses: one caption an image, counted with the table of the references.
      maxima: what `reference_maxima` returned.
      reference_lengths: words in each reference.
      image_of_caption: the image of each reference, ascending.
    """
    num_images = len(hypotheses.lengths)
    lengths = hypotheses.lengths
    correct = np.zeros((num_images, MAX_ORDER))
    for n, (order, (keys, largest)) in enumerate(zip(hypotheses.orders, maxima, strict=True)):
        places = find(group_keys(order.caption, order.ngram), keys)
        found = places >= 0
        clipped = np.minimum(order.count[found], largest[places[found]])
        correct[:, n] = np.bincount(order.caption[found], clipped, minlength=num_images)
    guesses = np.maximum(0, lengths[:, None] - np.arange(MAX_ORDER))
    statistics = np.column_stack(
        [correct, guesses, lengths, _closest_lengths(lengths, reference_lengths, image_of_caption)]
    )
    return [
        MetricResult(_bleu_from_sums(statistics, 1, n), statistics, functools.partial(_bleu_from_sums, max_order=n))
        for n in range(1, MAX_ORDER + 1)
    ]


def _closest_lengths(
    lengths: Int[np.ndarray, " N"], reference_lengths: Int[np.ndarray, " B"], image_of_caption: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " N"]:
    # The closest reference, the shorter of two equally close: the least of distance * big + length.
    big = int(reference_lengths.max(initial=0)) + 1
    ranks = np.abs(reference_lengths - lengths[image_of_caption]) * big + reference_lengths
    firsts = np.searchsorted(image_of_caption, np.arange(len(lengths)))
    return np.minimum.reduceat(ranks, firsts) % big


def _bleu_from_sums(
    sums: Float[np.ndarray, "*samples S"], num_images: int, max_order: int
) -> Float[Reduced, "*samples"]:
    """Papineni et al. 2002, section 2.3, from summed matches, n-grams, length and reference length."""
    correct, guesses = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference_length = sums[..., -2], sums[..., -1]
    precisions = (correct[..., :max_order] + _TINY) / (guesses[..., :max_order] + _SMALL)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity_penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.prod(precisions, axis=-1) ** (1 / max_order) * brevity_penalty
