"""Document frequencies on the device: the n-grams of a corpus of references as a trie, looked up inside a program.

The n-grams of `capjax.metrics.ngrams` are numbered by their first words and their last one, sorted: that is a trie laid
out level by level, the children of a node side by side in the order of their words. A lookup is one binary search a
level, in 32 bits (keys of two or more words would need JAX's 64-bit mode, which reaches into every other program).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from capjax.metrics.ngrams import MAX_ORDER, DocumentFrequencies

_LOW_BITS = 32


class NgramTrie(NamedTuple):
    """log(images / document frequency) of every n-gram of a corpus.

    Attributes:
        first_child: for each order but the last, where the children of every node begin among `words`; one more at the
            end.
        words: for each order but the first, the last word of every node.
        idf: for each order, that of every node.
        unseen_idf: that of an n-gram which is not in the corpus, log(images).
    """

    first_child: tuple[Int[Array, " _"], ...]
    words: tuple[Int[Array, " _"], ...]
    idf: tuple[Float[Array, " _"], ...]
    unseen_idf: Float[Array, ""]


def make_trie(df: DocumentFrequencies) -> NgramTrie:
    """Lay document frequencies out for a device; words are known by their numbers in `df.table.words`."""
    first_child, words = [], []
    for parents, keys in zip(df.table.keys, df.table.keys[1:], strict=False):
        of_parent = np.searchsorted(keys >> _LOW_BITS, np.arange(len(parents) + 1))
        first_child.append(of_parent.astype(np.int32))
        words.append((keys & (2**_LOW_BITS - 1)).astype(np.int32))
    num_images = np.log(float(df.num_images))
    idf = [(num_images - np.log(np.maximum(1.0, counts))).astype(np.float32) for counts in df.counts]
    return NgramTrie(tuple(first_child), tuple(words), tuple(idf), np.float32(num_images))


def idf_of_ngrams(trie: NgramTrie, captions: Int[Array, "*batch L"]) -> list[Float[Array, "*batch _"]]:
    """Look up the n-grams that begin at each position of captions.

    Args:
        trie: of the corpus.
        captions: numbers of words; -1 where there is none, and any other that the corpus lacks is an unknown word.

    Returns:
        For each order n, the idf by position, n - 1 positions fewer than the captions have; what stands where an n-gram
        reaches beyond a caption's end means nothing.
    """
    node = jnp.where((captions >= 0) & (captions < len(trie.idf[0])), captions, -1)
    found = [_idf(trie, 0, node)]
    for order in range(1, MAX_ORDER):
        word = captions[..., order:]
        node = _child(trie.first_child[order - 1], trie.words[order - 1], node[..., :-1], word)
        found.append(_idf(trie, order, node))
    return found


def _idf(trie: NgramTrie, order: int, node: Int[Array, "*batch _"]) -> Float[Array, "*batch _"]:
    idf = trie.idf[order]
    if len(idf) == 0:  # a corpus of captions shorter than this
        return jnp.full(node.shape, trie.unseen_idf)
    return jnp.where(node >= 0, idf[jnp.maximum(node, 0)], trie.unseen_idf)


def _child(
    first_child: Int[Array, " _"], words: Int[Array, " _"], parent: Int[Array, "*batch _"], word: Int[Array, "*batch _"]
) -> Int[Array, "*batch _"]:
    """Return the child of each parent by each word, -1 where there is none, by binary search among its children."""
    if len(words) == 0:
        return jnp.full(parent.shape, -1)
    low = first_child[jnp.maximum(parent, 0)]
    end = jnp.where(parent >= 0, first_child[jnp.maximum(parent, 0) + 1], low)

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        is_below = (words[jnp.minimum(middle, len(words) - 1)] < word) & (low < high)
        return jnp.where(is_below, middle + 1, low), jnp.where(is_below, high, middle)

    place, _ = jax.lax.fori_loop(0, len(words).bit_length(), halve, (low, end))
    is_found = (place < end) & (words[jnp.minimum(place, len(words) - 1)] == word)
    return jnp.where(is_found, place, -1)
