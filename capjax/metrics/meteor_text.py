"""How METEOR 1.5 reads English text: its own tokens, made of those of the COCO scorer.

Hyphenated words fall apart, contractions split before the apostrophe, full stops stay with abbreviations and initials.
"""

import re
from collections.abc import Mapping

# The stemmer itself, in Python: `snowballstemmer.stemmer` prefers PyStemmer, if installed, of whatever version.
from snowballstemmer.english_stemmer import EnglishStemmer

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
