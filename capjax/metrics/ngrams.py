"""Counted n-grams as NumPy arrays: what BLEU and both CIDErs are computed from.

Words get numbers, an n-gram gets the number of its first n-1 words and its last word packed into one int64, and that
again a dense number. Counting, document frequencies and the comparison of a caption with its references are then sorts
and binary searches over whole corpora instead of Python loops over tuples. In the shapes, an axis `_` has another size
for each order of n-grams.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from capjax.errors import CapjaxError
from capjax.host.disk import NPZ_ERRORS, check_inflated, write_atomically

MAX_ORDER = 4
_LOW_BITS = 32
_LOW_MASK = (1 << _LOW_BITS) - 1
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram of one order stands in each caption, ordered by caption, then by n-gram (G entries)."""

    caption: Int[np.ndarray, " G"]
    ngram: Int[np.ndarray, " G"]
    count: Int[np.ndarray, " G"]


@dataclass(frozen=True)
class NgramTable:
    """The numbers of words and n-grams: `keys[n]` is sorted, and an (n+1)-gram's number is its place there."""

    words: Mapping[str, int]
    keys: tuple[Int[np.ndarray, " _"], ...]


@dataclass(frozen=True)
class CountedCaptions:
    """Captions as n-gram counts of the orders 1 to 4.

    N-grams outside the table have numbers after it: their packed keys are in `new_keys`, the words in `new_words`.
    """

    table: NgramTable
    lengths: Int[np.ndarray, " B"]
    orders: tuple[NgramCounts, ...]
    new_words: tuple[str, ...] = ()
    new_keys: tuple[Int[np.ndarray, " _"], ...] = tuple(np.empty(0, np.int64) for _ in range(MAX_ORDER))


def count_ngrams(captions: Sequence[Sequence[str]], table: NgramTable | None = None) -> CountedCaptions:
    """Count the n-grams of tokenised captions.

    Args:
      captions: the words of each caption.
      table: numbers that are already given; by default a new table is made of these captions.
    """
    lengths = np.fromiter((len(words) for words in captions), np.int64, len(captions))
    flat = [word for caption in captions for word in caption]
    numbers: dict[str, int] = dict(table.words) if table else {}
    for word in dict.fromkeys(flat):
        numbers.setdefault(word, len(numbers))
    words = np.fromiter(map(numbers.__getitem__, flat), np.int64, len(flat))
    return count_ngrams_of_numbers(words, lengths, numbers, table)


def count_ngrams_of_numbers(
    words: Int[np.ndarray, " A"],
    lengths: Int[np.ndarray, " B"],
    numbers: Mapping[str, int],
    table: NgramTable | None = None,
) -> CountedCaptions:
    """Count the n-grams of captions whose words are numbers already.

    Args:
      words: of all captions, one after the other.
      lengths: of the captions.
      numbers: of the words, 0 and up in this order; those of `table` first.
      table: see `count_ngrams`.
    """
    num_known = len(table.words) if table else len(numbers)
    caption_of = np.repeat(np.arange(len(lengths)), lengths)
    known = table.keys if table else (np.arange(len(numbers)),) + (np.empty(0, np.int64),) * (MAX_ORDER - 1)
    all_keys, all_new_keys = [known[0]], [np.arange(num_known, len(numbers))]
    ngrams, starts = words, np.arange(len(words))
    orders = [_count(caption_of, ngrams, len(numbers))]
    for order in range(1, MAX_ORDER):
        longer = starts + order < len(words)
        longer[longer] = caption_of[starts[longer]] == caption_of[starts[longer] + order]
        starts = starts[longer]
        packed = (ngrams[longer] << _LOW_BITS) | words[starts + order]
        if table:
            ngrams, new_keys = _number(packed, known[order])
            all_keys.append(known[order])
        else:
            keys, ngrams = np.unique(packed, return_inverse=True)
            new_keys = np.empty(0, np.int64)
            all_keys.append(keys)
        all_new_keys.append(new_keys)
        orders.append(_count(caption_of[starts], ngrams, len(all_keys[-1]) + len(new_keys)))
    if table:
        return CountedCaptions(table, lengths, tuple(orders), tuple(numbers)[num_known:], tuple(all_new_keys))
    return CountedCaptions(NgramTable(numbers, tuple(all_keys)), lengths, tuple(orders))


def find(values: Int[np.ndarray, " A"], keys: Int[np.ndarray, " K"]) -> Int[np.ndarray, " A"]:
    """Return the place of each value in sorted keys, -1 where it is not among them."""
    if not len(keys):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[places] == values, places, -1)


def group_keys(groups: Int[np.ndarray, " G"], ngrams: Int[np.ndarray, " G"]) -> Int[np.ndarray, " G"]:
    """Pack a group number (an image, say) and an n-gram's number into one int64 that sorts by group first."""
    return (groups << _LOW_BITS) | ngrams


def ungroup_ngrams(keys: Int[np.ndarray, " G"]) -> Int[np.ndarray, " G"]:
    """Return the n-gram's number from a key of `group_keys`."""
    return keys & _LOW_MASK


def _number(
    packed: Int[np.ndarray, " A"], known: Int[np.ndarray, " K"]
) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " new"]]:
    numbers = find(packed, known)
    unknown = numbers < 0
    new_keys, inverse = np.unique(packed[unknown], return_inverse=True)
    numbers[unknown] = len(known) + inverse
    return numbers, new_keys


def _count(caption_of: Int[np.ndarray, " A"], ngrams: Int[np.ndarray, " A"], num_ngrams: int) -> NgramCounts:
    size = max(num_ngrams, 1)
    keys, counts = np.unique(caption_of * size + ngrams, return_counts=True)
    return NgramCounts(keys // size, keys % size, counts)


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs: the df of CIDEr's tf-idf weights.

    `counts[n]` belongs to `table.keys[n]`. Tables of a training set can be saved and used for any test set.
    """

    table: NgramTable
    counts: tuple[Int[np.ndarray, " _"], ...]
    num_images: int

    @classmethod
    def of_references(
        cls, references: CountedCaptions, image_of_caption: Int[np.ndarray, " B"]
    ) -> "DocumentFrequencies":
        """Count in how many images each n-gram of the references occurs; images without references do not count."""
        counts = []
        for order, keys in zip(references.orders, references.table.keys, strict=True):
            keys_of_images = np.sort(group_keys(image_of_caption[order.caption], order.ngram))
            once_an_image = keys_of_images[np.flatnonzero(np.diff(keys_of_images, prepend=-1))]
            counts.append(np.bincount(ungroup_ngrams(once_an_image), minlength=len(keys)))
        return cls(references.table, tuple(counts), len(np.unique(image_of_caption)))

    def inverse(self, captions: CountedCaptions) -> tuple[Float[np.ndarray, " _"], ...]:
        """Return log(images / df) of every n-gram that `captions` numbers, by order; df is 1 for one never seen."""
        frequencies = self._own(captions) if captions.table is self.table else self._translated(captions)
        return tuple(np.log(float(self.num_images)) - np.log(np.maximum(1.0, counts)) for counts in frequencies)

    def _own(self, captions: CountedCaptions) -> list[Int[np.ndarray, " _"]]:
        new = captions.new_keys
        return [np.concatenate([counts, np.zeros(len(new[n]), np.int64)]) for n, counts in enumerate(self.counts)]

    def _translated(self, captions: CountedCaptions) -> list[Int[np.ndarray, " _"]]:
        words = (*captions.table.words, *captions.new_words)
        word_map = np.fromiter((self.table.words.get(word, -1) for word in words), np.int64, len(words))
        numbers = word_map
        frequencies = []
        for n in range(MAX_ORDER):
            if n:
                keys = np.concatenate([captions.table.keys[n], captions.new_keys[n]])
                prefix, last = numbers[keys >> _LOW_BITS], word_map[keys & _LOW_MASK]
                packed = np.where((prefix >= 0) & (last >= 0), (prefix << _LOW_BITS) | last, -1)
                numbers = find(packed, self.table.keys[n])
            counts = np.zeros(len(numbers), np.int64)
            counts[numbers >= 0] = self.counts[n][numbers[numbers >= 0]]
            frequencies.append(counts)
        return frequencies

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a file (NumPy `.npz`, format version 1)."""
        arrays = {f"keys{n + 1}": keys for n, keys in enumerate(self.table.keys) if n}
        arrays |= {f"counts{n + 1}": counts for n, counts in enumerate(self.counts)}
        words = np.frombuffer("\n".join(self.table.words).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, capjax_df_version=_FORMAT_VERSION, num_images=self.num_images, words=words, **arrays
        )
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        """Read a table that `save` wrote.

        Raises:
          CapjaxError: the file is missing, is no such table, or has another format version.
        """
        try:
            check_inflated(path)
            with np.load(path, allow_pickle=False) as file:
                if int(file["capjax_df_version"]) != _FORMAT_VERSION:
                    raise CapjaxError(
                        f"{path}: expected a df table of format version {_FORMAT_VERSION}, found version"
                        f" {int(file['capjax_df_version'])}; make it again with this capjax"
                    )
                text = file["words"].tobytes().decode()
                words = {word: number for number, word in enumerate(text.split("\n") if text else ())}
                keys = (np.arange(len(words)), *(file[f"keys{n}"] for n in range(2, MAX_ORDER + 1)))
                counts = tuple(file[f"counts{n}"] for n in range(1, MAX_ORDER + 1))
                num_images = int(file["num_images"])
        except FileNotFoundError as error:
            raise CapjaxError(f"{path}: no such df table; `capjax score --save_df=FILE` writes one") from error
        except NPZ_ERRORS as error:
            raise CapjaxError(f"{path}: expected a df table of capjax (.npz), could not read it: {error!r}") from error
        if any(len(k) != len(c) for k, c in zip(keys, counts, strict=True)) or num_images < 1:
            raise CapjaxError(f"{path}: the df table is damaged (counts and n-grams differ in number); make it again")
        return cls(NgramTable(words, keys), counts, num_images)
