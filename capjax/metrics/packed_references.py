"""The references of a training split, packed for the reward that a device computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from capjax.metrics import cider
from capjax.metrics.ngram_trie import NgramTrie, make_trie
from capjax.metrics.ngrams import DocumentFrequencies, count_ngrams
from capjax.text.vocabulary import Vocabulary
from capjax.types import SPECIAL_IDS

_END = ""  # a word of its own, which no tokeniser makes


@dataclass(frozen=True)
class PackedReferences:
    """What CIDEr-D and BLEU need of some images' references, by numbers of words.

    END is a word, the last of each reference. Otherwise a caption that breaks off, "a man with a", would lose nothing
    against one that says with what, and reinforcement finds that out.

    Attributes:
        trie: document frequencies of these references.
        number_of_token: the number of each word of a vocabulary; -1 of PAD, a number that no reference holds of UNK and
            START.
        words: the references of all images, one after the other, -1 behind each.
        norms: length of each reference's tf-idf vector, by n-gram order.
        first: the first reference of each image, and the end of the last.
    """

    trie: NgramTrie
    number_of_token: Int[np.ndarray, " V"]
    words: Int[np.ndarray, "C T"]
    norms: Float[np.ndarray, "C 4"]
    first: Int[np.ndarray, " images"]

    def of_images(self, images: Sequence[int] | Int[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """Gather the references of a batch.

        Args:
            images: their places in the split.

        Returns:
            `references` int32 [N, R, T], -1 where a reference or all of it is missing, R the most that any image of
            the split has, and `reference_norms` float32 [N, R, 4].
        """
        images = np.asarray(images)
        starts, counts = self.first[images], self.first[images + 1] - self.first[images]
        most = int(np.diff(self.first).max())
        rows = starts[:, None] + np.arange(most)
        missing = np.arange(most)[None] >= counts[:, None]
        rows = np.where(missing, 0, rows)
        return {
            "references": np.where(missing[:, :, None], np.int32(-1), self.words[rows]),
            "reference_norms": np.where(missing[:, :, None], np.float32(0), self.norms[rows]),
        }


def pack_references(captions: Sequence[Sequence[str]], vocabulary: Vocabulary) -> PackedReferences:
    """Pack references.

    Args:
        captions: the raw captions of each image; of some images there may be none.
        vocabulary: tokenises them, and says which token of a model is which word. A word that it lacks is a word all
            the same, which no caption of the model has.
    """
    tokenised = [[*vocabulary.tokenize(caption), _END] for of_image in captions for caption in of_image]
    image_of_caption = np.repeat(np.arange(len(captions)), [len(of_image) for of_image in captions])
    counted = count_ngrams(tokenised)
    df = DocumentFrequencies.of_references(counted, image_of_caption)
    weighted = cider.weigh_references(counted, image_of_caption, df)
    numbers = counted.table.words
    words = np.full((len(tokenised), int(counted.lengths.max())), -1, np.int32)
    for row, caption in zip(words, tokenised, strict=True):
        row[: len(caption)] = [numbers[word] for word in caption]
    number_of_token = np.full(len(vocabulary), len(numbers), np.int32)
    for word, token in vocabulary.ids.items():
        number_of_token[token] = numbers.get(word, len(numbers) + token)
    number_of_token[SPECIAL_IDS.end], number_of_token[SPECIAL_IDS.pad] = numbers[_END], -1
    return PackedReferences(
        make_trie(df),
        number_of_token,
        words,
        np.stack([order.norms for order in weighted.orders], axis=1).astype(np.float32),
        np.searchsorted(image_of_caption, np.arange(len(captions) + 1)),
    )
