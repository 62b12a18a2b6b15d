"""How METEOR 1.5 reads English text: its own tokens, made of those of the COCO scorer.

Hyphenated words fall apart, contractions split before the apostrophe, full stops stay with abbreviations and initials.
Of a set of sentences, `Sentences` then numbers the words and phrases.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

# The stemmer itself, in Python: `snowballstemmer.stemmer` prefers PyStemmer, if installed, of whatever version.
from snowballstemmer.english_stemmer import EnglishStemmer

_MAX_PHRASE_LENGTH = 7  # words of the longest entry of the paraphrase table
_PHRASES_AT_A_TIME = 1 << 16
# Any odd numbers of 64 bits do, whose upper halves are well mixed; these are of SplitMix64 (Steele et al. 2014).
_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_LETTERS = "A-Za-zŠŽšžŸÀ-ÖØ-öø-ž\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
_PLAIN = re.compile("[a-z0-9 ]*")
_SPACES = " \t\n\x0b\f\r"
_JAVA_SPACES = re.compile("[ \t\n\r\f]+")
_ALONE = re.compile(rf"([^0-9{_LETTERS}{_SPACES}.'`,\-‘’])")
_COMMAS = tuple(
    re.compile(f"({before}),({after})")
    for before, after in (("[^0-9]", "[^0-9]"), ("[0-9]", "[^0-9]"), ("[^0-9]", "[0-9]"))
)
_APOSTROPHES = (
    (re.compile(f"([^{_LETTERS}])'([^{_LETTERS}])"), r"\1 ' \2"),
    (re.compile(f"([^{_LETTERS}0-9])'([{_LETTERS}])"), r"\1 ' \2"),
    (re.compile(f"([{_LETTERS}])'([^{_LETTERS}])"), r"\1 ' \2"),
    (re.compile(f"([{_LETTERS}])'([{_LETTERS}])"), r"\1 '\2"),
    (re.compile("([0-9])'(s)"), r"\1 '\2"),
)
_CONTROLS = "".join(map(chr, range(33)))
_UNICODE_SPACES = re.compile("[ \u2000-\u200a\u202f\u205f\u3000\u00a0]+")


def meteor_words(text: str, abbreviations: Mapping[str, bool]) -> tuple[str, ...]:
    """Return METEOR's words of a text.

    Args:
      text: tokens of the COCO scorer, joined with spaces.
      abbreviations: words that keep their full stop; True for those that do so only before a number.
    """
    if _PLAIN.fullmatch(text):
        return tuple(text.split())
    line = _ALONE.sub(r" \1 ", f" {text} ")
    line = re.sub(r"\.(\.+)", r" DOTMULTI\1", line)
    while "DOTMULTI." in line:
        line = re.sub(r"DOTMULTI\.([^.])", r"DOTDOTMULTI \1", line)
        line = line.replace("DOTMULTI.", "DOTDOTMULTI")
    for commas in _COMMAS:
        line = commas.sub(r"\1 , \2", line)
    line = re.sub("[`‘’]", "'", line)
    line = re.sub("[“”]|''", ' " ', line)
    line = line.replace("–", "-").replace("--", "-")
    line = re.sub(f"([0-9{_LETTERS}.])-([0-9{_LETTERS}])", r"\1 \2", line)
    for apostrophe, split in _APOSTROPHES:
        line = apostrophe.sub(split, line)
    pieces = [piece for piece in _JAVA_SPACES.split(line) if piece]
    followers = [*pieces[1:], ""]
    line = " ".join(_split_stop(piece, after, abbreviations) for piece, after in zip(pieces, followers, strict=True))
    while "DOTDOTMULTI" in line:
        line = line.replace("DOTDOTMULTI", "DOTMULTI.")
    line = _UNICODE_SPACES.sub(" ", line.replace("DOTMULTI", ".")).strip(_CONTROLS).lower()
    return tuple(word for word in _JAVA_SPACES.split(line) if word)


def stem(word: str) -> str:
    """Return the stem of a lower-case word by Snowball's English stemmer, by which METEOR matches inflected words.

    METEOR carries the rules that `snowballstemmer` had until version 2; version 3 stems "evening" otherwise.
    """
    return EnglishStemmer().stemWord(word)  # a new one, since it keeps the word it works on


class Spans(NamedTuple):
    """Phrases where they stand in sentences that are laid one after another."""

    start: Int[np.ndarray, " N"]
    length: Int[np.ndarray, " N"]
    phrase: Int[np.ndarray, " N"]  # its number


class Phrases:
    """Pieces of a text, numbered in their order and found by what they are, of which only the text is kept.

    As `bytes` in a dictionary, the phrases of COCO's captions would take a gigabyte. Of two phrases with the same 64
    bits of hash one is not found; among ten million phrases there are such two once in 400,000 times.
    """

    def __init__(self, text: bytes, starts: Int[np.ndarray, " N"], ends: Int[np.ndarray, " N"]) -> None:
        """Take phrases, all different, by where they start and end in a text."""
        self._text, self._starts, self._ends = text, starts, ends
        # A sieve of sixteen places or more for each of these lets a sixteenth of others pass, at most.
        self._sieve = np.zeros(16 << len(starts).bit_length(), bool)
        windows = _windows(text)
        hashes = np.empty(len(starts), np.int64)
        for first in range(0, len(starts), _PHRASES_AT_A_TIME):
            block = slice(first, first + _PHRASES_AT_A_TIME)
            hashes[block] = np.fromiter(map(hash, pieces(text, starts[block], ends[block])), np.int64)
            self._sieve[self._places(windows, starts[block], ends[block])] = True
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self._starts)

    def numbers(self, phrases: Sequence[bytes]) -> Int[np.ndarray, " M"]:
        """Return the number of each of some phrases, -1 for one that is not among these."""
        found = np.full(len(phrases), -1)
        if not len(self):
            return found
        hashes = np.fromiter(map(hash, phrases), np.int64, len(phrases))
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        is_equal = np.flatnonzero(self._hashes[places] == hashes)
        for i, number in zip(is_equal.tolist(), self._order[places[is_equal]].tolist(), strict=True):
            if self._text[self._starts[number] : self._ends[number]] == phrases[i]:
                found[i] = number
        return found

    def sift(self, text: bytes, starts: Int[np.ndarray, " M"], ends: Int[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
        """Return which pieces of a text may be among these; of those that are not, few. All at once, it is fast."""
        return self._sieve[self._places(_windows(text), starts, ends)]

    def _places(
        self, windows: UInt64[np.ndarray, " T"], starts: Int[np.ndarray, " M"], ends: Int[np.ndarray, " M"]
    ) -> Int[np.ndarray, " M"]:
        """Return the place in the sieve of pieces of a text: by their length, first eight bytes and last eight."""
        lengths = (ends - starts).astype(np.uint64)
        beyond = 8 * (8 - np.minimum(lengths, 8))  # bits that are none of a short piece's
        first, last = windows[starts + 8] << beyond, windows[ends] >> beyond
        mixed = first * _MIX[0] + last * _MIX[1] + lengths * _MIX[2]
        num_bits = len(self._sieve).bit_length() - 1
        return (mixed >> np.uint64(64 - num_bits)).astype(np.int64)


def _windows(text: bytes) -> UInt64[np.ndarray, " T"]:
    """View any eight bytes of a text, eight zeros before it and behind, as one number."""
    return np.ndarray(len(text) + 9, "<u8", bytes(8) + text + bytes(8), strides=(1,))


def pieces(text: bytes, starts: Int[np.ndarray, " N"], ends: Int[np.ndarray, " N"]) -> Iterator[bytes]:
    """Cut pieces out of a text."""
    return map(text.__getitem__, map(slice, starts.tolist(), ends.tolist()))


class Sentences:
    """Sentences laid one after another, with numbers for their words and phrases.

    Attributes:
      vocabulary: the words by number.
      phrases: all of up to seven words, joined with spaces, in UTF-8; the number of a single word is the word's.
      words: the number of the word at each place.
      starts: where each sentence begins.
      lengths: of how many words it is.
      spans: where the phrases stand, of one word first, then of two and more; in 32 bits, as there are many.
    """

    def __init__(self, sentences: Sequence[tuple[str, ...]]) -> None:
        """Number the words and phrases of sentences as `meteor_words` returns them."""
        flat = [word for sentence in sentences for word in sentence]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        self.vocabulary = tuple(numbers)
        self.words = np.fromiter(map(numbers.__getitem__, flat), np.int64, len(flat))
        self.lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        self.starts = np.cumsum(self.lengths) - self.lengths
        ends = np.repeat(self.starts + self.lengths, self.lengths)
        text = " ".join(flat).encode()
        text_ends = np.cumsum(np.array([len(word.encode()) + 1 for word in numbers], np.int64)[self.words]) - 1
        text_starts = np.append(0, text_ends[:-1] + 1)

        start, phrase, num_phrases = np.arange(len(flat)), self.words, 0
        places, self.spans = [], []
        for length in range(1, _MAX_PHRASE_LENGTH + 1):
            fits = start + length <= ends[start]
            start = start[fits]
            # A phrase is known by the number of the one without its last word, and that word.
            keys = self.words if length == 1 else phrase[fits] * len(numbers) + self.words[start + length - 1]
            _, first, phrase = np.unique(keys, return_index=True, return_inverse=True)
            places.append((text_starts[start[first]], text_ends[start[first] + length - 1]))
            phrase += num_phrases
            num_phrases += len(first)
            self.spans.append(Spans(*(x.astype(np.int32) for x in (start, np.full_like(start, length), phrase))))
        self.phrases = Phrases(text, *map(np.concatenate, zip(*places, strict=True)))


def _split_stop(piece: str, after: str, abbreviations: Mapping[str, bool]) -> str:
    """Split the full stop from a word, unless it belongs there."""
    if len(piece) == 1 or not piece.endswith("."):
        return piece
    stem = piece[:-1]
    if "." in stem and re.search(f"[{_LETTERS}]", stem):
        return piece.replace(".", "")  # U.S. is taken as US
    before_number_only = abbreviations.get(stem)
    if before_number_only is False or re.match("[a-z]", after) or (before_number_only and re.match("[0-9]", after)):
        return piece
    return stem + " ."
