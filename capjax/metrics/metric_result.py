"""What every metric returns: a score for each image, and the sums from which the corpus score is made.

A corpus score is a function of per-image statistics summed over the images: of the scores themselves for the means
(ROUGE-L, CIDEr), of match counts and lengths for BLEU and METEOR. Whoever resamples images (`bootstrap`) needs nothing
but those statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Reduced = np.ndarray | np.number | np.bool_
"""What NumPy makes of an array by reducing its last axis: a scalar of its own, no array, if that was the only one."""

Combine = Callable[[Float[np.ndarray, "*samples S"], int], Float[Reduced, "*samples"]]
"""Statistics summed over that many images -> corpus score; any number of sums at once."""


@dataclass(frozen=True)
class MetricResult:
    """The scores of one metric on N images.

    Attributes:
      per_image: the score of each image.
      statistics: what adds up over images.
      combine: the corpus score from sums of `statistics` and the number of images.
    """

    per_image: Float[np.ndarray, " N"]
    statistics: Float[np.ndarray, "N S"]
    combine: Combine

    @property
    def corpus(self) -> float:
        """The score of the whole corpus."""
        return float(self.combine(self.statistics.sum(axis=0), len(self.statistics)))


def mean_result(per_image: Float[np.ndarray, " N"]) -> MetricResult:
    """Make the result of a metric whose corpus score is the mean over the images."""
    return MetricResult(per_image, per_image[:, None], lambda sums, num_images: sums[..., 0] / num_images)
