"""What METEOR knows about English: function words, abbreviations, WordNet synonyms, paraphrases.

All of it is read from the published package (`pycocoevalcap`, if installed): the jar holds the word lists and WordNet,
a table beside it five million paraphrases. No Java runs for that. `relations` says what it means for given sentences.
"""

import collections
import functools
import gzip
import itertools
import pathlib
import zipfile
import zlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from capjax.errors import CapjaxError
from capjax.metrics.meteor_text import Phrases, Sentences, pieces, stem
from capjax.metrics.published_scorer import published_scorer

_BLOCK = 1 << 24
_NEWLINE = ord("\n")

# The matchers in their order. The last two find paraphrases of a reference's phrases and of a caption's.
EXACT, STEM, SYNONYM, PARAPHRASE, REVERSE_PARAPHRASE = range(5)

# WordNet's detachment rules, in its order (Fellbaum 1998): suffix and what replaces it.
_DETACHMENTS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The word lists of METEOR.

    Attributes:
      function_words: words that count less.
      abbreviations: words that keep their full stop; True for those that do so only before a number.
      synsets: the WordNet synonym sets of each word.
      bases: base forms of irregular words.
    """

    function_words: frozenset[str]
    abbreviations: Mapping[str, bool]
    synsets: Mapping[str, frozenset[int]]
    bases: Mapping[str, tuple[str, ...]]

    def synonym_sets(self, word: str) -> frozenset[int]:
        """Return the synonym sets of a word and of its base forms."""
        own = self.synsets.get(word, frozenset())
        if word in self.bases:
            return own.union(*(self.synsets.get(base, frozenset()) for base in self.bases[word]))
        return own | self.synsets.get(self._base(word), frozenset())

    def _base(self, word: str) -> str:
        if len(word) <= 2 or word.endswith("ss"):
            return word
        for suffix, replacement in _DETACHMENTS:
            if word.endswith(suffix):
                base = word.removesuffix(suffix) + replacement
                if base in self.synsets:
                    return base
        return ""


Paraphrases = Mapping[tuple[int, int], int]
"""The numbers of a phrase and of its paraphrase -> their place in the table."""


class Relations(NamedTuple):
    """Which phrases of a reference match which phrases of a caption, ordered by `key`."""

    key: Int[np.ndarray, " R"]  # the number of the reference's phrase times that of all phrases, plus the caption's
    matcher: Int[np.ndarray, " R"]
    table_place: Int[np.ndarray, " R"]  # of paraphrases


def published_folder() -> pathlib.Path:
    """Return the folder of METEOR in the installed pycocoevalcap.

    Raises:
      CapjaxError: it is not installed, or without METEOR's files.
    """
    scorer = published_scorer()
    if scorer is None:
        raise CapjaxError("METEOR needs the word lists of the published scorer: pip install pycocoevalcap")
    folder = scorer / "meteor"
    for name in ("meteor-1.5.jar", "data/paraphrase-en.gz"):
        if not (folder / name).exists():
            raise CapjaxError(f"METEOR needs {name} in {folder}: install pycocoevalcap again")
    return folder


@functools.cache
def load_lexicon() -> Lexicon:
    """Read the word lists from the jar (0.3 s).

    Raises:
      CapjaxError: the package is not installed or damaged.
    """
    jar_path = published_folder() / "meteor-1.5.jar"
    try:
        with zipfile.ZipFile(jar_path) as jar:
            names = ("function/english.words", "nonbreaking/english.prefixes")
            function_words, prefixes = (jar.read(name).decode("utf-8").splitlines() for name in names)
            names = ("synonym/english.synsets", "synonym/english.exceptions")
            synsets, exceptions = (jar.read(name).decode("utf-8").splitlines() for name in names)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
        raise CapjaxError(
            f"{jar_path}: cannot read METEOR's word lists ({error}): install pycocoevalcap again"
        ) from error
    bases: dict[str, tuple[str, ...]] = {}
    for base, forms in zip(exceptions[::2], exceptions[1::2], strict=True):
        for form in forms.split():
            bases[form] = (*bases.get(form, ()), base)
    entries = [line.split() for line in prefixes if line.split() and not line.split()[0].startswith("#")]
    return Lexicon(
        frozenset(function_words),
        {entry[0]: entry[1:2] == ["#NUMERIC_ONLY#"] for entry in entries},
        {word: frozenset(map(int, sets.split())) for word, sets in zip(synsets[::2], synsets[1::2], strict=True)},
        bases,
    )


def load_paraphrases(phrases: Phrases) -> Paraphrases:
    """Read those entries of the paraphrase table whose two sides are both among `phrases`.

    The table is streamed (some seconds, whatever the number of phrases): few of its entries matter for a test set.

    Raises:
      CapjaxError: the package is not installed or damaged.
    """
    path = published_folder() / "data" / "paraphrase-en.gz"
    found: dict[tuple[int, int], int] = {}
    place, rest = 0, b""
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                # Entries are three lines: a probability, a phrase, its paraphrase. There are sixteen million lines: few
                # of them ever become objects of Python.
                text = rest + block
                ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE)
                entries = ends[: len(ends) // 3 * 3].reshape(-1, 3)
                rest = text[entries[-1, 2] + 1 :] if len(entries) else text
                sifted = np.arange(len(entries))
                for side in (0, 1):
                    sifted = sifted[phrases.sift(text, entries[sifted, side] + 1, entries[sifted, side + 1])]
                one, other = (
                    phrases.numbers([*pieces(text, entries[sifted, side] + 1, entries[sifted, side + 1])])
                    for side in (0, 1)
                )
                for entry, *pair in np.stack([sifted, one, other], axis=-1)[(one >= 0) & (other >= 0)].tolist():
                    found[tuple(pair)] = place + 3 * entry + 1
                place += 3 * len(entries)
    except (OSError, EOFError, zlib.error) as error:
        raise CapjaxError(f"{path}: cannot read METEOR's paraphrases ({error}): install pycocoevalcap again") from error
    return found


def relations(sentences: Sentences, lexicon: Lexicon, paraphrases: Paraphrases) -> Relations:
    """Return what matches among the phrases of sentences, by any matcher."""
    words = [_word(text, lexicon) for text in sentences.vocabulary]
    stems = ((word.stem, number) for number, word in enumerate(words))
    synonyms = ((synset, number) for number, word in enumerate(words) for synset in word.synsets)
    rows = [(number, number, EXACT, 0) for number in range(len(words))]
    rows += [(one, other, STEM, 0) for one, other in _within_groups(stems)]
    rows += [(one, other, SYNONYM, 0) for one, other in _within_groups(synonyms)]
    for (one, other), place in paraphrases.items():
        rows += [(one, other, PARAPHRASE, place), (other, one, REVERSE_PARAPHRASE, place)]
    one, other, matcher, table_place = np.array(rows, np.int64).reshape(-1, 4).T
    key = one * len(sentences.phrases) + other
    order = np.argsort(key, kind="stable")
    return Relations(key[order], matcher[order], table_place[order])


class _Word(NamedTuple):
    stem: str
    synsets: frozenset[int]


@functools.lru_cache(maxsize=100_000)
def _word(text: str, lexicon: Lexicon) -> _Word:
    return _Word(stem(text), lexicon.synonym_sets(text))


def _within_groups(members: Iterable[tuple[Hashable, int]]) -> set[tuple[int, int]]:
    """Return any two that have a group in common, from (group, member)."""
    groups: dict[Hashable, list[int]] = collections.defaultdict(list)
    for group, member in members:
        groups[group].append(member)
    return {pair for group in groups.values() for pair in itertools.permutations(group, 2)}
