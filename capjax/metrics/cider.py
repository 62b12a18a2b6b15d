"""CIDEr and CIDEr-D (Vedantam, Zitnick and Parikh 2015): consensus of a caption with its references by tf-idf.

CIDEr is the mean over n of the paper's equation 2, as in its equation 3, CIDEr-D its equation 4, what the COCO server
and `pycocoevalcap` (under the name of `Cider`) compute: n-grams clipped to the reference, and a Gaussian penalty on the
difference in length. Both carry the factor 10 of the authors' programs, neither stems words, as theirs do not.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from capjax.metrics.metric_result import MetricResult, mean_result
from capjax.metrics.ngrams import MAX_ORDER, CountedCaptions, DocumentFrequencies, find, group_keys

_SIGMA = 6.0


@dataclass(frozen=True)
class _WeightedOrder:
    """The tf-idf vectors of one n-gram order over all captions."""

    keys: Int[np.ndarray, " G"]
    caption: Int[np.ndarray, " G"]
    weights: Float[np.ndarray, " G"]
    norms: Float[np.ndarray, " B"]


@dataclass(frozen=True)
class WeightedReferences:
    """References as tf-idf vectors; make it once, score against it often."""

    orders: tuple[_WeightedOrder, ...]
    num_bigrams: Int[np.ndarray, " B"]
    image_of_caption: Int[np.ndarray, " B"]
    df: DocumentFrequencies


def weigh_references(
    references: CountedCaptions, image_of_caption: Int[np.ndarray, " B"], df: DocumentFrequencies
) -> WeightedReferences:
    """Return the tf-idf vectors of the references.

    Args:
      references: their n-gram counts.
      image_of_caption: the image of each reference, ascending from 0.
      df: document frequencies, of these references or of another corpus.
    """
    return WeightedReferences(_weigh(references, image_of_caption, df), _num_bigrams(references), image_of_caption, df)


def cider(hypotheses: CountedCaptions, references: WeightedReferences) -> MetricResult:
    """Return plain CIDEr: the mean over n and references of the cosine of the tf-idf vectors, times 10."""
    return _consensus(hypotheses, references, clipped=False)


def cider_d(hypotheses: CountedCaptions, references: WeightedReferences) -> MetricResult:
    """Return CIDEr-D: the same with clipped n-grams and the length penalty exp(-(l_c - l_s)² / 2σ²), σ = 6.

    Lengths are numbers of bigrams, as in the published program.
    """
    return _consensus(hypotheses, references, clipped=True)


def _consensus(hypotheses: CountedCaptions, references: WeightedReferences, clipped: bool) -> MetricResult:
    image_of_caption = references.image_of_caption
    num_images, num_references = len(hypotheses.lengths), len(image_of_caption)
    weighted = _weigh(hypotheses, np.arange(num_images), references.df)
    similarity = np.zeros(num_references)
    for hypothesis, reference in zip(weighted, references.orders, strict=True):
        places = find(reference.keys, hypothesis.keys)
        shared = places >= 0
        own, other = hypothesis.weights[places[shared]], reference.weights[shared]
        products = (np.minimum(own, other) if clipped else own) * other
        dots = np.bincount(reference.caption[shared], products, minlength=num_references)
        norms = hypothesis.norms[image_of_caption] * reference.norms
        similarity += np.divide(dots, norms, out=np.zeros(num_references), where=norms != 0)
    if clipped:
        difference = (_num_bigrams(hypotheses)[image_of_caption] - references.num_bigrams).astype(np.float64)
        similarity *= np.exp(-(difference**2) / (2 * _SIGMA**2))
    sums = np.bincount(image_of_caption, similarity, minlength=num_images)
    counts = np.bincount(image_of_caption, minlength=num_images)
    return mean_result(10.0 * sums / (MAX_ORDER * counts))


def _weigh(
    captions: CountedCaptions, image_of_caption: Int[np.ndarray, " B"], df: DocumentFrequencies
) -> tuple[_WeightedOrder, ...]:
    orders = []
    for order, inverse_df in zip(captions.orders, df.inverse(captions), strict=True):
        weights = order.count * inverse_df[order.ngram]
        norms = np.sqrt(np.bincount(order.caption, weights**2, minlength=len(captions.lengths)))
        keys = group_keys(image_of_caption[order.caption], order.ngram)
        orders.append(_WeightedOrder(keys, order.caption, weights, norms))
    return tuple(orders)


def _num_bigrams(captions: CountedCaptions) -> Int[np.ndarray, " B"]:
    return np.maximum(0, captions.lengths - 1)
