"""METEOR 1.5 (Denkowski and Lavie 2014) for English, with its published ranking parameters and without Java.

A caption is aligned with each of its references (`meteor_alignment`), and the best reference counts. Word lists,
WordNet and paraphrases come from the installed `pycocoevalcap` (`meteor_resources`); without it there is no METEOR.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from capjax.metrics.meteor_alignment import Aligner
from capjax.metrics.meteor_resources import PARAPHRASE, Lexicon, load_lexicon, load_paraphrases, relations
from capjax.metrics.meteor_text import Sentences, meteor_words
from capjax.metrics.metric_result import MetricResult, Reduced

# Denkowski and Lavie 2014, English ranking task.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # equal words, stems, synonyms, paraphrases

# The statistics of an alignment: lengths of caption and reference (2), their function words (2), for each stage matched
# content words of caption and reference and matched function words of both (16), chunks, matched words of both (2).
_CHUNKS = 20
_BLOCK_SIZE = 1 << 18  # words of references times words of captions that are aligned at once: some 3,000 pairs


def compute(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[MetricResult, str]:
    """Return METEOR for tokenised captions and what computed it.

    Raises:
      CapjaxError: pycocoevalcap, whose word lists it takes, is not installed or damaged.
    """
    lexicon = load_lexicon()
    with _collection_paused():
        statistics = _statistics(hypotheses, references, lexicon)
    return result_from_statistics(_best(statistics, list(map(len, references)))), "METEOR 1.5 in Python"


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep the garbage collector from looking through what is all in use, again and again: a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _statistics(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], lexicon: Lexicon
) -> Float[np.ndarray, "B S"]:
    """Return the match statistics of each caption with each of its references."""
    numbers: dict[tuple[str, ...], int] = {}

    def number(tokens: Sequence[str]) -> int:
        text = " ".join(tokens).replace("|||", "")  # what the published wrapper cannot pass on to its program
        return numbers.setdefault(meteor_words(text, lexicon.abbreviations), len(numbers))

    captions = np.repeat([number(tokens) for tokens in hypotheses], list(map(len, references)))
    compared = np.array([number(tokens) for of_image in references for tokens in of_image], np.int64)
    sentences = Sentences(list(numbers))
    aligner = Aligner(sentences, relations(sentences, lexicon, load_paraphrases(sentences.phrases)))
    is_function = np.array([word in lexicon.function_words for word in sentences.vocabulary], bool)
    function_words_before = np.append(0, np.cumsum(is_function[sentences.words]))
    # In blocks of about equal work, memory does not grow with the number of captions.
    work = np.cumsum(sentences.lengths[captions] * sentences.lengths[compared])
    blocks = np.split(np.arange(len(work)), np.flatnonzero(np.diff(work // _BLOCK_SIZE)) + 1)
    return np.concatenate(
        [
            _block_statistics(captions[block], compared[block], aligner, function_words_before)
            for block in tqdm(blocks, desc="METEOR", disable=None, leave=False)
        ]
    )


def _block_statistics(
    captions: Int[np.ndarray, " B"],
    references: Int[np.ndarray, " B"],
    aligner: Aligner,
    function_words_before: Int[np.ndarray, " W"],
) -> Float[np.ndarray, "B S"]:
    """Return the match statistics of captions and references, given as numbers of sentences.

    Args:
      captions: one of each pair.
      references: the other one.
      aligner: of the sentences.
      function_words_before: how many function words stand before each place in the sentences.
    """
    starts, lengths = aligner.sentences.starts, aligner.sentences.lengths
    matches = aligner.align(captions, references)

    def function_words(
        sentence: Int[np.ndarray, " N"], start: Int[np.ndarray, " N"] | int, end: Int[np.ndarray, " N"]
    ) -> Int[np.ndarray, " N"]:
        return function_words_before[starts[sentence] + end] - function_words_before[starts[sentence] + start]

    caption_function = function_words(captions[matches.pair], matches.caption_start, matches.caption_end)
    function = function_words(references[matches.pair], matches.start, matches.end)
    content = matches.caption_length - caption_function, matches.length - function
    stage = len(_STAGE_WEIGHTS) * matches.pair + np.minimum(matches.matcher, PARAPHRASE)
    stages = [
        np.bincount(stage, number, len(_STAGE_WEIGHTS) * len(captions))
        for number in (*content, caption_function, function)
    ]
    begins_chunk = np.ones(len(matches.pair), bool)
    begins_chunk[1:] = (
        (matches.pair[1:] != matches.pair[:-1])
        | (matches.start[1:] != matches.end[:-1])
        | (matches.caption_start[1:] != matches.caption_end[:-1])
    )
    totals = [
        np.bincount(matches.pair, number, len(captions))
        for number in (begins_chunk, matches.caption_length, matches.length)
    ]
    sides = (captions, references)
    columns = [lengths[side] for side in sides] + [function_words(side, 0, lengths[side]) for side in sides]
    return np.column_stack([*columns, np.stack(stages, axis=-1).reshape(len(captions), -1), *totals]).astype(np.float64)


def _best(statistics: Float[np.ndarray, "B S"], num_references: Sequence[int]) -> Float[np.ndarray, "N S"]:
    """Return the statistics of each caption with the reference it scores best against, the first of equals."""
    scores = meteor_from_sums(statistics)
    ends = np.cumsum(num_references)
    return statistics[
        [end - number + np.argmax(scores[end - number : end]) for number, end in zip(num_references, ends, strict=True)]
    ]


def result_from_statistics(statistics: Float[np.ndarray, "N S"]) -> MetricResult:
    """Return the scores from the 23 match statistics of each caption with its best reference."""
    per_image = meteor_from_sums(statistics)
    sums = statistics.copy()
    sums[_is_perfect(statistics), _CHUNKS] = 0  # the published program does not add up the chunk of a perfect match
    return MetricResult(per_image, sums, lambda totals, num_images: meteor_from_sums(totals))


def meteor_from_sums(sums: Float[np.ndarray, "*samples S"]) -> Float[np.ndarray, "*samples"]:
    """Denkowski and Lavie 2014: weighted F-mean of the matched words, less the fragmentation penalty."""
    lengths, function_words = sums[..., 0:2], sums[..., 2:4]
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    content, function = stages[..., 0:2], stages[..., 2:4]
    weighted = _STAGE_WEIGHTS @ (_DELTA * content + (1 - _DELTA) * function)
    weighted_lengths = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / weighted_lengths, -1, 0)
        f_mean = 1.0 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = np.where(_is_perfect(sums), 0.0, sums[..., _CHUNKS] / (sums[..., 21:23].sum(axis=-1) / 2))
        scores = f_mean * (1.0 - _GAMMA * fragments**_BETA)
    return np.where(np.isnan(scores), 0.0, np.maximum(scores, 0.0))


def _is_perfect(sums: Float[np.ndarray, "*samples S"]) -> Bool[Reduced, "*samples"]:
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)
    return (stages.sum(axis=(-3, -2)) == sums[..., 0:2]).all(axis=-1) & (sums[..., _CHUNKS] == 1)
