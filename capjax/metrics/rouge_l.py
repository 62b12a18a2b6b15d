"""ROUGE-L (Lin 2004) as the COCO scorer computes it: F-measure of longest common subsequences, beta 1.2."""

from collections.abc import Sequence

import numpy as np

from capjax.metrics.metric_result import MetricResult, mean_result

_BETA = 1.2


def rouge_l(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> MetricResult:
    """Return ROUGE-L of one tokenised caption an image against the tokenised references of that image.

    Best precision and best recall may come from different references. A caption without words counts as one empty
    word, as it does in the published scorer, so that an empty caption matches an empty reference.
    """
    scores = [
        _score(words or [""], [r or [""] for r in refs]) for words, refs in zip(hypotheses, references, strict=True)
    ]
    return mean_result(np.array(scores))


def _score(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    places: dict[str, int] = {}
    for position, word in enumerate(words):
        places[word] = places.get(word, 0) | (1 << position)
    precision = recall = 0.0
    for reference in references:
        common = _longest_common_subsequence(places, len(words), reference)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common_subsequence(places: dict[str, int], length: int, reference: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a whole row of the table in one integer (Hyyrö 2004).

    Args:
      places: for each word of the caption, the bits of its positions.
      length: words in the caption.
      reference: the words to compare with.
    """
    all_ones = (1 << length) - 1
    row = all_ones
    for word in reference:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & all_ones
    return length - row.bit_count()
