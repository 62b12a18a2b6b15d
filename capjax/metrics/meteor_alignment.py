"""METEOR's alignment of a caption with a reference (Denkowski and Lavie 2014, section 2).

Four matchers propose matches: equal words, equal stems, common synonym sets, paraphrases of up to seven words. A beam
search over the reference, left to right, picks those that cover the most words in the fewest and straightest chunks.
The search follows the published program in everything that decides between equals, quirks included, because the score
depends on it: see `_search`.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

from capjax.metrics.meteor_resources import MAX_PHRASE_LENGTH, Lexicon, Paraphrases
from capjax.metrics.meteor_text import stem

_BEAM_SIZE = 40
_EXACT, _STEM, _SYNONYM, _PARAPHRASE = range(4)
_rank = operator.attrgetter("rank")


class Match(NamedTuple):
    """Words of the reference from `start` that match words of the caption from `caption_start`."""

    start: int
    length: int
    caption_start: int
    caption_length: int
    stage: int
    bits: int  # the words of the reference
    caption_bits: int
    gain: int  # what it is worth in the search


@functools.lru_cache(maxsize=100_000)
def _match(start: int, length: int, caption_start: int, caption_length: int, stage: int) -> Match:
    bits = ((1 << length) - 1) << start
    caption_bits = ((1 << caption_length) - 1) << caption_start
    # All but equal words weigh half, and the program keeps its sums in integers: of a single word nothing is left.
    gain = length + caption_length if stage == _EXACT else length // 2 + caption_length // 2
    return Match(start, length, caption_start, caption_length, stage, bits, caption_bits, gain)


class Word(NamedTuple):
    """What the matchers ask of a word."""

    stem: str
    synonyms: frozenset[int]
    is_function: bool


@functools.lru_cache(maxsize=100_000)
def _word(text: str, lexicon: Lexicon) -> Word:
    return Word(stem(text), lexicon.synonym_sets(text), text in lexicon.function_words)


class Sentence:
    """A sentence with what the matchers ask of it; of paraphrases, after `find_paraphrases`."""

    paraphrases: Paraphrases

    def __init__(self, words: tuple[str, ...], lexicon: Lexicon) -> None:
        """Look up the words.

        Args:
          words: as `meteor_text.meteor_words` returns them.
          lexicon: METEOR's word lists.
        """
        self.words = words
        known = [_word(word, lexicon) for word in words]
        self.stems = [word.stem for word in known]
        self.is_function = [word.is_function for word in known]
        self.synonyms = [(place, word.synonyms) for place, word in enumerate(known) if word.synonyms]
        self.all_synonyms = frozenset().union(*(sets for _, sets in self.synonyms))

    @functools.cached_property
    def phrases(self) -> frozenset[str]:
        """Every phrase of up to seven words."""
        phrases = []
        for start in range(len(self.words)):
            phrase = ""
            for word in self.words[start : start + MAX_PHRASE_LENGTH]:
                phrase = f"{phrase} {word}" if phrase else word
                phrases.append(phrase)
        return frozenset(phrases)

    def find_paraphrases(self, paraphrases: Paraphrases) -> None:
        """Keep what the table says of the phrases."""
        self.paraphrases = {phrase: paraphrases[phrase] for phrase in self.phrases & paraphrases.keys()}

    def places_of(self, phrase: str) -> list[int]:
        """Return where a phrase begins."""
        words = tuple(phrase.split(" "))
        return [place for place in range(len(self.words)) if self.words[place : place + len(words)] == words]


def alignment_statistics(caption: Sentence, reference: Sentence) -> list[int]:
    """Return the 23 match statistics of a caption and a reference, in the order that `meteor` documents."""
    matches = _all_matches(caption, reference)
    chosen = _search(matches, len(caption.words))
    statistics = [len(caption.words), len(reference.words), sum(caption.is_function), sum(reference.is_function)]
    counts = [0] * 16
    chunks, matched, caption_matched, end, caption_end = 0, 0, 0, -1, -1
    for match in chosen:
        for place in range(match.caption_start, match.caption_start + match.caption_length):
            counts[4 * match.stage + 2 * caption.is_function[place]] += 1
        for place in range(match.start, match.start + match.length):
            counts[4 * match.stage + 2 * reference.is_function[place] + 1] += 1
        chunks += match.start != end or match.caption_start != caption_end
        end, caption_end = match.start + match.length, match.caption_start + match.caption_length
        matched += match.length
        caption_matched += match.caption_length
    return [*statistics, *counts, chunks, caption_matched, matched]


def _all_matches(caption: Sentence, reference: Sentence) -> list[list[Match]]:
    """Return the proposed matches by the word of the reference where they start, in the order of the matchers."""
    found: list[list[Match]] = [[] for _ in reference.words]
    for start, word in enumerate(reference.words):
        found[start] += [_match(start, 1, place, 1, _EXACT) for place in _places(caption.words, word)]
    if caption.words == reference.words:  # then nothing but equal words counts
        return found
    for start, (word, word_stem) in enumerate(zip(reference.words, reference.stems, strict=True)):
        for place in _places(caption.stems, word_stem):
            if word != caption.words[place]:
                found[start].append(_match(start, 1, place, 1, _STEM))
    for start, sets in reference.synonyms:
        if not sets.isdisjoint(caption.all_synonyms):
            for place, other_sets in caption.synonyms:
                if not sets.isdisjoint(other_sets) and reference.words[start] != caption.words[place]:
                    found[start].append(_match(start, 1, place, 1, _SYNONYM))
    for start, length, place, other_length in _paraphrase_places(reference, caption):
        found[start].append(_match(start, length, place, other_length, _PARAPHRASE))
    for place, other_length, start, length in _paraphrase_places(caption, reference):
        found[start].append(_match(start, length, place, other_length, _PARAPHRASE))
    return found


def _places(words: Sequence[str], wanted: str) -> list[int]:
    if wanted not in words:  # most are not, and this is quicker to see
        return []
    return [place for place, word in enumerate(words) if word == wanted]


def _paraphrase_places(one: Sentence, other: Sentence) -> list[tuple[int, int, int, int]]:
    """Return (start, length, start in the other, length there) of phrases of `one` with a paraphrase in `other`."""
    found = []
    for phrase, table in one.paraphrases.items():
        if other.phrases.isdisjoint(table):
            continue
        for paraphrase in table.keys() & other.phrases:
            length, other_length = phrase.count(" ") + 1, paraphrase.count(" ") + 1
            starts, places = one.places_of(phrase), other.places_of(paraphrase)
            found += [(start, length, table[paraphrase], place, other_length) for start in starts for place in places]
    return [(start, length, place, n) for start, length, _, place, n in sorted(found)]


_CHUNK = 1 << 60
_GAIN = 1 << 100


class _Path:
    """A partial alignment in the search.

    `rank` orders paths: more matched words first, then fewer chunks, then less distance, packed into one integer.
    """

    __slots__ = ("caption_used", "end", "last", "matches", "rank", "used")

    def __init__(
        self, rank: int, used: int, caption_used: int, matches: tuple[Match, ...], end: int, last: int
    ) -> None:
        self.rank = rank
        self.used, self.caption_used = used, caption_used
        self.matches = matches
        self.end = end  # the word of the reference up to which the path has decided
        self.last = last  # where its open chunk ends in the caption, -1 without one

    def with_match(self, match: Match) -> "_Path":
        rank = self.rank - match.gain * _GAIN
        if self.last not in (-1, match.caption_start):
            rank += _CHUNK
        return _Path(
            rank,
            self.used | match.bits,
            self.caption_used | match.caption_bits,
            (*self.matches, match),
            match.start + match.length,
            match.caption_start + match.caption_length,
        )

    def close_chunk(self) -> None:
        if self.last != -1:
            self.rank += _CHUNK
            self.last = -1


def _search(matches: Sequence[Sequence[Match]], caption_length: int) -> tuple[Match, ...]:
    """Return the best set of matches, by place in the reference.

    Two quirks of the published program matter: half-weighted single words do not count when paths are compared, and
    the distance of a match is charged not to the path that takes it but to those that the program makes after it.
    """
    fixed, used, caption_used = _certain_matches(matches, caption_length)
    paths = [_Path(0, used, caption_used, (), 0, -1)]
    for current, proposed in enumerate(matches):
        if len(paths) > 1:
            paths.sort(key=_rank)
        certain = fixed.get(current)
        following = []
        for path in paths[:_BEAM_SIZE]:
            if path.used >> current & 1:
                if current >= path.end:
                    if not certain:
                        continue
                    path = path.with_match(certain)
                    path.rank += abs(current - certain.caption_start)
                following.append(path)
                continue
            for match in proposed:
                if not (path.used & match.bits or path.caption_used & match.caption_bits):
                    following.append(path.with_match(match))
                    path.rank += abs(current - match.caption_start)
            path.close_chunk()
            path.end = current + 1
            following.append(path)
        paths = following or paths[:1]
    paths.sort(key=_rank)
    del paths[_BEAM_SIZE:]
    for path in paths:
        path.close_chunk()
    return min(paths, key=_rank).matches


def _certain_matches(matches: Sequence[Sequence[Match]], caption_length: int) -> tuple[dict[int, Match], int, int]:
    """Return the matches that no other match contradicts, and the words they use in reference and caption."""
    coverage, caption_coverage = [0] * len(matches), [0] * caption_length
    for proposed in matches:
        for match in proposed:
            for place in range(match.start, match.start + match.length):
                coverage[place] += 1
            for place in range(match.caption_start, match.caption_start + match.caption_length):
                caption_coverage[place] += 1
    fixed, used, caption_used = {}, 0, 0
    for start, proposed in enumerate(matches):
        if len(proposed) == 1:
            match = proposed[0]
            alone = all(n == 1 for n in coverage[start : start + match.length])
            span = slice(match.caption_start, match.caption_start + match.caption_length)
            if alone and all(n == 1 for n in caption_coverage[span]):
                fixed[start] = match
                used |= match.bits
                caption_used |= match.caption_bits
    return fixed, used, caption_used
