"""The references of a training split, packed for the reward that a device computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from capjax.data.tokenized_captions import TokenizedCaptions
from capjax.metrics import cider
from capjax.metrics.ngram_trie import NgramTrie, make_trie
from capjax.metrics.ngrams import DocumentFrequencies, count_ngrams_of_numbers
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
        captions: the references, on the disk; a word's number is its place there, and END's the one behind them.
        norms: length of each reference's tf-idf vector, by n-gram order.
        most_references: that an image has.
        most_words: that a reference has, without END.
    """

    trie: NgramTrie
    number_of_token: Int[np.ndarray, " V"]
    captions: TokenizedCaptions
    norms: Float[np.ndarray, "C 4"]
    most_references: int
    most_words: int

    def of_images(self, images: Sequence[int] | Int[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """Gather the references of a batch.

        Args:
            images: their places in the split.

        Returns:
            `references` int32 [N, R, T], -1 behind each and where one is missing, of which R and T are the most of any
            image and reference of the split, and `reference_norms` float32 [N, R, 4].
        """
        images, among = np.asarray(images), np.arange(self.most_references)
        starts = self.captions.image_starts
        exists = starts[images][:, None] + among < starts[images + 1][:, None]
        numbers = np.where(exists, starts[images][:, None] + among, 0)
        first_word = self.captions.caption_starts[numbers]
        lengths = self.captions.caption_starts[numbers + 1] - first_word
        at = np.arange(self.most_words)
        is_word = at < lengths[..., None]
        references = np.full((*exists.shape, self.most_words + 1), -1, np.int32)
        references[..., :-1][is_word] = self.captions.tokens[(first_word[..., None] + at)[is_word]]
        np.put_along_axis(references, lengths[..., None], len(self.captions.words), axis=-1)
        return {
            "references": np.where(exists[..., None], references, np.int32(-1)),
            "reference_norms": np.where(exists[..., None], self.norms[numbers], np.float32(0)),
        }


def pack_references(captions: TokenizedCaptions, vocabulary: Vocabulary) -> PackedReferences:
    """Pack references.

    Args:
        captions: of the images; some may have none.
        vocabulary: of the same tokeniser; it says which token of a model is which word. A word that it lacks is a word
            all the same, which no caption of the model has.
    """
    assert vocabulary.tokenizer == captions.tokenizer
    numbers = {word: number for number, word in enumerate((*captions.words, _END))}
    lengths = np.diff(captions.caption_starts)
    num_references = np.diff(captions.image_starts)
    image_of_caption = np.repeat(np.arange(len(num_references)), num_references)
    words = np.insert(captions.tokens.astype(np.int64), captions.caption_starts[1:], numbers[_END])
    counted = count_ngrams_of_numbers(words, lengths + 1, numbers)
    df = DocumentFrequencies.of_references(counted, image_of_caption)
    weighted = cider.weigh_references(counted, image_of_caption, df)
    number_of_token = np.full(len(vocabulary), len(numbers), np.int32)
    for word, token in vocabulary.ids.items():
        number_of_token[token] = numbers.get(word, len(numbers) + token)
    number_of_token[SPECIAL_IDS.end], number_of_token[SPECIAL_IDS.pad] = numbers[_END], -1
    return PackedReferences(
        make_trie(df),
        number_of_token,
        captions,
        np.stack([order.norms for order in weighted.orders], axis=1).astype(np.float32),
        int(num_references.max()),
        int(lengths.max()),
    )
