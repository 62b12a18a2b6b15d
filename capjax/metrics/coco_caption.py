"""The front door of the metrics: captions and references in, all scores out.

    scores = score({7: ["a dog runs", "the dog is running"]}, {7: "a dog running"})
    scores.corpus["CIDEr-D"], scores.per_image["BLEU-4"][7]

Captions are raw text; they are tokenised as the COCO scorer does it, in the order of the references. Every image of the
references is scored exactly once: results for other images, or none for some image, are errors. Scores are unscaled,
as the published programs return them (0 to 1; CIDEr and CIDEr-D up to 10).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from capjax.errors import CapjaxError
from capjax.metrics import bleu, cider, meteor, spice
from capjax.metrics.metric_result import MetricResult
from capjax.metrics.ngrams import CountedCaptions, DocumentFrequencies, count_ngrams
from capjax.metrics.rouge_l import rouge_l
from capjax.text.ptb_tokenizer import tokenize_captions

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU_NAMES, "METEOR", "ROUGE-L", "CIDEr", "CIDEr-D", "SPICE")
DEFAULT_METRICS = METRICS[:-1]

FEW_IMAGES = 100
"""With fewer images than this, CIDEr says little by document frequencies of their references.

It weighs words by the images whose references lack them: among a handful that is chance, and of one alone it is always
0. Validation takes the frequencies of the training captions then, or the model that is kept would be chosen so.
"""


class References:
    """Reference captions, tokenised once, with everything the metrics derive from them.

    Make one of these to score several sets of captions, or the same images again and again during training.
    """

    def __init__(self, references: Mapping[int, Sequence[str]]) -> None:
        """Tokenise the references.

        Args:
          references: the raw captions of each image.

        Raises:
          CapjaxError: no images, or an image without references.
        """
        if not references:
            raise CapjaxError("expected references for at least one image, found none")
        for image_id, captions in references.items():
            if isinstance(captions, str) or not captions:
                raise CapjaxError(f"expected a list of reference captions for image {image_id}, found {captions!r}")
        self.image_ids = tuple(references)
        self.raw = {image_id: tuple(captions) for image_id, captions in references.items()}
        self.image_of_caption = np.repeat(np.arange(len(self.raw)), [len(captions) for captions in self.raw.values()])
        flat = tokenize_captions(caption for captions in self.raw.values() for caption in captions)
        self.tokens: list[list[list[str]]] = [[] for _ in self.raw]
        for image, tokens in zip(self.image_of_caption, flat, strict=True):
            self.tokens[image].append(tokens)
        self._weighted: cider.WeightedReferences | None = None

    @functools.cached_property
    def counted(self) -> CountedCaptions:
        """The references as n-gram counts."""
        return count_ngrams([words(tokens) for captions in self.tokens for tokens in captions])

    @functools.cached_property
    def maxima(self) -> bleu.ReferenceMaxima:
        """The clipping counts of BLEU."""
        return bleu.reference_maxima(self.counted, self.image_of_caption)

    @functools.cached_property
    def df(self) -> DocumentFrequencies:
        """In how many of these images each n-gram occurs."""
        return DocumentFrequencies.of_references(self.counted, self.image_of_caption)

    def weighted(self, df: DocumentFrequencies) -> cider.WeightedReferences:
        """The tf-idf vectors of the references for these document frequencies (the last ones are kept)."""
        if self._weighted is None or self._weighted.df is not df:
            self._weighted = cider.weigh_references(self.counted, self.image_of_caption, df)
        return self._weighted


@dataclass(frozen=True)
class Scores:
    """Scores of one set of captions.

    Attributes:
      image_ids: the images, in the order of the references.
      results: for each metric the per-image scores and the statistics that can be resampled.
      skipped: metrics that were asked for and could not be computed here, with the reason.
      settings: how the scores were computed.
    """

    image_ids: tuple[int, ...]
    results: Mapping[str, MetricResult]
    skipped: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str | int] = field(default_factory=dict)

    @functools.cached_property
    def corpus(self) -> dict[str, float]:
        """The score of the whole corpus, by metric."""
        return {name: result.corpus for name, result in self.results.items()}

    @functools.cached_property
    def per_image(self) -> dict[str, dict[int, float]]:
        """The score of each image, by metric and image id."""
        return {
            name: dict(zip(self.image_ids, result.per_image.tolist(), strict=True))
            for name, result in self.results.items()
        }


def words(tokens: Sequence[str]) -> list[str]:
    """Return the words BLEU and CIDEr see: a hard space inside a token (as in `5 1/2`) separates them."""
    return " ".join(tokens).split()


def score(
    references: References | Mapping[int, Sequence[str]],
    hypotheses: Mapping[int, str],
    metrics: Sequence[str] = DEFAULT_METRICS,
    df: DocumentFrequencies | None = None,
) -> Scores:
    """Score one caption for each image.

    Args:
      references: raw reference captions of each image, or `References` made of them.
      hypotheses: one raw caption for each of those images.
      metrics: names out of `METRICS`.
      df: document frequencies for CIDEr and CIDEr-D; those of the references by default.

    Raises:
      CapjaxError: unknown metric, missing or superfluous images, no references.
    """
    for name in metrics:
        if name not in METRICS:
            raise CapjaxError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    if not isinstance(references, References):
        references = References(references)
    check_images(references.image_ids, hypotheses)
    tokens = tokenize_captions(hypotheses[image_id] for image_id in references.image_ids)
    results, skipped = {}, {}
    if {*metrics} & {*BLEU_NAMES, "CIDEr", "CIDEr-D"}:
        counted = count_ngrams([words(caption) for caption in tokens], references.counted.table)
    if {*metrics} & {*BLEU_NAMES}:
        all_bleu = bleu.bleu(counted, references.maxima, references.counted.lengths, references.image_of_caption)
        results |= dict(zip(BLEU_NAMES, all_bleu, strict=True))
    if {*metrics} & {"CIDEr", "CIDEr-D"}:
        weighted = references.weighted(df or references.df)
        results |= {"CIDEr": cider.cider(counted, weighted), "CIDEr-D": cider.cider_d(counted, weighted)}
    if "ROUGE-L" in metrics:
        results["ROUGE-L"] = rouge_l(tokens, references.tokens)
    settings: dict[str, str | int] = {"tokenizer": "PTB, punctuation removed", "num_images": len(tokens)}
    own = f"references of {len(tokens)} image{'s' if len(tokens) != 1 else ''}"
    settings["df"] = f"{df.num_images} images of a saved table" if df else own
    for name, module in (("METEOR", meteor), ("SPICE", spice)):
        if name in metrics:
            try:
                results[name], settings[name] = module.compute(tokens, references.tokens)
            except CapjaxError as error:
                skipped[name] = str(error)
    results = {name: results[name] for name in METRICS if name in metrics and name in results}
    return Scores(references.image_ids, results, skipped, settings)


def check_images(image_ids: Sequence[int], hypotheses: Mapping[int, str]) -> None:
    """Check that there is one caption for each image and none besides.

    Raises:
      CapjaxError: with examples of what is missing or superfluous.
    """
    missing = [image_id for image_id in image_ids if image_id not in hypotheses]
    known = set(image_ids)
    superfluous = [image_id for image_id in hypotheses if image_id not in known]
    if missing or superfluous:
        parts = []
        if missing:
            parts.append(f"{len(missing)} images of the references have no caption (such as image {missing[0]})")
        if superfluous:
            parts.append(f"{len(superfluous)} captions are for images without references (such as {superfluous[0]})")
        raise CapjaxError(
            f"expected captions for exactly the {len(known)} images of the references, but {' and '.join(parts)}"
        )
    for image_id, caption in hypotheses.items():
        if not isinstance(caption, str):
            raise CapjaxError(f"expected a caption as text for image {image_id}, found {caption!r}")
