"""How METEOR 1.5 reads English text: its own tokens, made of those of the COCO scorer.

Hyphenated words fall apart, contractions split before the apostrophe, full stops stay with abbreviations and initials.
Of a set of sentences, `Sentences` then numbers the words and phrases.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# The stemmer itself, in Python: `snowballstemmer.stemmer` prefers PyStemmer, if installed, of whatever version.
from snowballstemmer.english_stemmer import EnglishStemmer

_MAX_PHRASE_LENGTH = 7  # words of the longest entry of the paraphrase table
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


class Sentences:
    """Sentences laid one after another, with numbers for their words and phrases.

    Attributes:
      vocabulary: the words by number.
      phrases: the number of each phrase of up to seven words, joined with spaces; that of a single word is the word's.
      words: the number of the word at each place.
      starts: where each sentence begins.
      lengths: of how many words it is.
      spans: where the phrases stand.
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

        start, phrase, num_phrases = np.arange(len(flat)), self.words, len(numbers)
        spans = [Spans(start, np.ones_like(start), phrase)]
        for length in range(2, _MAX_PHRASE_LENGTH + 1):
            fits = start + length <= ends[start]
            start = start[fits]
            # A phrase is known by the number of the one without its last word, and that word.
            keys, phrase = np.unique(phrase[fits] * len(numbers) + self.words[start + length - 1], return_inverse=True)
            phrase += num_phrases
            num_phrases += len(keys)
            spans.append(Spans(start, np.full_like(start, length), phrase))
        self.spans = Spans(*map(np.concatenate, zip(*spans, strict=True)))

        some_span = np.zeros(num_phrases, np.int64)  # any one of each phrase
        some_span[self.spans.phrase] = np.arange(len(self.spans.phrase))
        start, length = self.spans.start[some_span], self.spans.length[some_span]
        text = " ".join(flat).encode()
        text_ends = np.cumsum(np.array([len(word.encode()) + 1 for word in numbers], np.int64)[self.words]) - 1
        text_starts = np.append(0, text_ends + 1)
        slices = map(slice, text_starts[start].tolist(), text_ends[start + length - 1].tolist())
        self.phrases = {phrase: number for number, phrase in enumerate(map(text.__getitem__, slices))}


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
