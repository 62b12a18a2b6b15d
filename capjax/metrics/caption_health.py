"""What scores do not show: broken endings, repetitions, poverty of words, captions that ignore the image, leaks.

All shares are fractions of the captions, between 0 and 1.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from capjax.errors import CapjaxError
from capjax.metrics.coco_caption import References, score
from capjax.metrics.ngrams import DocumentFrequencies
from capjax.text.ptb_tokenizer import tokenize, tokenize_captions

# Words that need another one after them. Those that may well end a caption ("in", "on", "her", "by", "through") are not
# among them: of human captions only a fraction of a per cent end in one of these.
DANGLING_WORDS = frozenset(
    "a an the of with at from for into onto to and or but next their his its my your our which who while is are be"
    " being between beside against toward towards and/or very".split()
)
UNKNOWN_WORDS = frozenset({"unk", "<unk>"})

AILMENTS = ("empty", "dangling_end", "unknown_word", "repetition")
"""What can be wrong with a caption whatever the image shows: the fields of `Health` that tell how many have it."""


@dataclass(frozen=True)
class Health:
    """Health measures of one set of captions.

    Attributes:
      num_captions: captions looked at.
      mean_length: words in a caption.
      empty: share without a word.
      dangling_end: share that ends in a word that needs another ("a man with a").
      unknown_word: share with an UNK.
      repetition: share with a word or word pair twice in a row, or a word triple twice anywhere.
      distinct_captions: different captions over captions.
      distinct_1, distinct_2: different words over words, different word pairs over word pairs (Li et al. 2016).
      vocabulary: different words used.
      novel_captions: share not among the training captions; None without those.
    """

    num_captions: int
    mean_length: float
    empty: float
    dangling_end: float
    unknown_word: float
    repetition: float
    distinct_captions: float
    distinct_1: float
    distinct_2: float
    vocabulary: int
    novel_captions: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the measures by name."""
        return asdict(self)


def health(captions: Sequence[str], train_captions: Iterable[str] | None = None) -> Health:
    """Measure the health of raw captions.

    Args:
      captions: one for each image.
      train_captions: raw captions the model was trained on, for `novel_captions`.

    Raises:
      CapjaxError: no captions.
    """
    if not captions:
        raise CapjaxError("expected at least one caption to look at, found none")
    tokenised = [tuple(tokens) for tokens in tokenize_captions(captions)]
    num_captions = len(tokenised)
    all_words = [word for words in tokenised for word in words]
    pairs = [pair for words in tokenised for pair in itertools.pairwise(words)]
    novel = None
    if train_captions is not None:
        seen = {tuple(tokens) for tokens in tokenize_captions(train_captions)}
        novel = _share(words not in seen for words in tokenised)
    found = [_ailments(words) for words in tokenised]
    return Health(
        num_captions=num_captions,
        mean_length=len(all_words) / num_captions,
        **{ailment: _share(ailment in of_caption for of_caption in found) for ailment in AILMENTS},
        distinct_captions=len(set(tokenised)) / num_captions,
        distinct_1=len(set(all_words)) / max(1, len(all_words)),
        distinct_2=len(set(pairs)) / max(1, len(pairs)),
        vocabulary=len(set(all_words)),
        novel_captions=novel,
    )


def ailments(captions: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each raw caption those of the `AILMENTS` that it has."""
    return [_ailments(words) for words in tokenize_captions(captions)]


def _ailments(words: Sequence[str]) -> tuple[str, ...]:
    has = {
        "empty": not words,
        "dangling_end": bool(words) and words[-1] in DANGLING_WORDS,
        "unknown_word": any(word in UNKNOWN_WORDS for word in words),
        "repetition": repeats_itself(words),
    }
    return tuple(ailment for ailment in AILMENTS if has[ailment])


def repeats_itself(words: Sequence[str]) -> bool:
    """Return whether a word or a word pair stands twice in a row, or a word triple twice anywhere."""
    words = tuple(words)
    if any(words[i : i + n] == words[i + n : i + 2 * n] for n in (1, 2) for i in range(len(words) - 2 * n + 1)):
        return True
    triples = [words[i : i + 3] for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples)


def image_dependence(
    references: References | Mapping[int, Sequence[str]],
    hypotheses: Mapping[int, str],
    metric: str = "CIDEr-D",
    df: DocumentFrequencies | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Score the captions again after dealing them out to other images.

    A captioner that looks at its images loses nearly all of its score; one that says the same of every image, nothing.

    Args:
      references, hypotheses, df: as for `coco_caption.score`.
      metric: the score to compare.
      seed: of the shuffle, in which every image gets the caption of another one.

    Returns:
      `score`, `shuffled`, and `drop`, the share of the score that is lost.
    """
    if not isinstance(references, References):
        references = References(references)
    image_ids = references.image_ids
    order = np.random.default_rng(seed).permutation(len(image_ids))
    # One cycle through the images in random order: nobody keeps the own caption.
    shuffled = {image_ids[i]: hypotheses[image_ids[j]] for i, j in zip(order, np.roll(order, 1), strict=True)}
    kept = score(references, hypotheses, (metric,), df).corpus[metric]
    lost = score(references, shuffled, (metric,), df).corpus[metric]
    return {"score": kept, "shuffled": lost, "drop": (kept - lost) / kept if kept else 0.0}


@dataclass(frozen=True)
class Leakage:
    """What a test set shares with the training data.

    Attributes:
      shared_image_ids: image ids in both.
      same_image_captions: test images of which two or more references are captions of one and the same training image:
        most likely the same photograph under another id.
      shared_captions: share of the test references that are training captions word for word; some of that is chance.
    """

    shared_image_ids: tuple[int, ...]
    same_image_captions: tuple[int, ...]
    shared_captions: float


def leakage(train: Mapping[int, Sequence[str]], test: Mapping[int, Sequence[str]]) -> Leakage:
    """Look for test images and test references among the training data.

    Args:
      train: raw captions of each training image.
      test: raw references of each test image.
    """
    images_of: dict[tuple[str, ...], set[int]] = {}
    for image_id, captions in train.items():
        for caption in captions:
            images_of.setdefault(tuple(tokenize(caption)), set()).add(image_id)
    suspects, num_shared, num_references = [], 0, 0
    for image_id, captions in test.items():
        said = [tuple(tokenize(caption)) for caption in captions]
        num_references += len(said)
        num_shared += sum(words in images_of for words in said)
        owners = [image for words in set(said) for image in images_of.get(words, ())]
        if len(owners) > len(set(owners)):
            suspects.append(image_id)
    return Leakage(
        tuple(image_id for image_id in test if image_id in train),
        tuple(suspects),
        num_shared / max(1, num_references),
    )


def _share(truths: Iterable[bool]) -> float:
    listed = list(truths)
    return sum(listed) / len(listed)
