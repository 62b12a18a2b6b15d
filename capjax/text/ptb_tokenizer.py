"""Penn Treebank tokens as the COCO caption scorer makes them, without Java.

The COCO scorer lower-cases the output of Stanford's PTBTokenizer (CoreNLP 3.4.1) and removes eighteen punctuation
tokens. This module gives the same tokens from plain Python:

    tokenize("A man's dog can't sit.")  ->  ['a', 'man', "'s", 'dog', 'ca', "n't", 'sit']

A caption made of plain words and commas or full stops, as nearly all captions are, is split by `_tokenize_plain`.
Everything else goes through the longest-match lexer of `ptb_lexer`.

Two habits of the published scorer deserve a word, because scores depend on them. Brackets become `-lrb-`, `-rrb-` and
so on, and stay: its list of punctuation has them in upper case only. And it tokenises one file with a caption a line,
so the beginning of the next line decides how a few captions end (`Plan B.` before `The dog` gives `b`, elsewhere
`b.`); `tokenize_captions` reproduces that, `tokenize` sees one caption alone.
"""

import re
from collections.abc import Iterable, Sequence

from capjax.text.ptb_lexer import lex
from capjax.text.ptb_rules import ABBREVIATIONS, SPLIT_WORDS

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What the COCO scorer removes. The bracket names never match: tokens are lower-case by then."""

_LINE_BREAK = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
_PLAIN_CHUNK = re.compile(r"([A-Za-z]*)([.,]?)")
_MAX_KNOWN_CHUNKS = 200_000
_known_chunks: dict[str, str | None] = {}


def tokenize(caption: str) -> list[str]:
    """Return the lower-case tokens of one caption without punctuation, as the COCO scorer sees them.

    Line breaks of any kind count as spaces (the published scorer loses count of its captions there). Characters that
    PTBTokenizer does not know, emoji among them, are dropped. An empty caption has no tokens.
    """
    return _tokenize_in_context(_as_one_line(caption), "")


def tokenize_captions(captions: Iterable[str]) -> list[list[str]]:
    """Tokenise captions in the order given, equal to one run of the published scorer over all of them."""
    lines = [_as_one_line(caption) for caption in captions]
    tokens = []
    for index, line in enumerate(lines):
        plain = _tokenize_plain(line)
        if plain is None:
            plain = _tokenize_in_context(line, _what_follows(lines, index + 1))
        tokens.append(plain)
    return tokens


def _as_one_line(caption: str) -> str:
    return _LINE_BREAK.sub(" ", caption)


def _what_follows(lines: Sequence[str], start: int) -> str:
    # No rule looks further than over blank lines to the first words of the next caption that has some.
    following = []
    for index in range(start, len(lines)):
        following.append("\n" + lines[index][:200])
        if lines[index].strip():
            return "".join(following) + ("\n" if index + 1 < len(lines) else "")
    return "".join(following)


def _tokenize_in_context(line: str, following: str) -> list[str]:
    plain = _tokenize_plain(line)
    if plain is not None:
        return plain
    # The published scorer splits its tokenised line at single spaces, so this is where a token ends for all metrics.
    joined = " ".join(lex(line, following)).rstrip()
    return [token for token in joined.split(" ") if token and token not in PUNCTUATION]


def _tokenize_plain(line: str) -> list[str] | None:
    """Split a line of plain words, each with at most one comma or full stop; None if there is anything else in it."""
    tokens = []
    for chunk in line.split(" "):
        if not chunk:
            continue
        if chunk in _known_chunks:
            word = _known_chunks[chunk]
        else:
            word = _plain_word(chunk)
            if len(_known_chunks) < _MAX_KNOWN_CHUNKS:
                _known_chunks[chunk] = word
        if word is None:
            return None
        if word:
            tokens.append(word)
    return tokens


def _plain_word(chunk: str) -> str | None:
    """Return the one token of a chunk ("" for a lone comma or full stop), None where the rules have to decide."""
    match = _PLAIN_CHUNK.fullmatch(chunk)
    if match is None:
        return None
    word = match[1].lower()
    if word in SPLIT_WORDS or (match[2] == "." and (len(word) == 1 or word in ABBREVIATIONS)):
        return None
    return word
