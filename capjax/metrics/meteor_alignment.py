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


def _match(start: int, length: int, caption_start: int, caption_length: int, stage: int) -> Match:
    bits = ((1 << length) - 1) << start
    caption_bits = ((1 << caption_length) - 1) << caption_start
    # All but equal words weigh half, and the program keeps its sums in integers: of a single word nothing is left.
    gain = length + caption_length if stage == _EXACT else length // 2 + caption_length // 2
    return Match(start, length, caption_start, caption_length, stage, bits, caption_bits, gain)


class Sentence:
    """A sentence with what the matchers ask of it."""

    def __init__(self, words: tuple[str, ...], lexicon: Lexicon) -> None:
        """Look up the words.

        Args:
          words: as `meteor_text.meteor_words` returns them.
          lexicon: METEOR's word lists.
        """
        self.words = words
        self.stems = [stem(word) for word in words]
        self.synonyms = [_synonym_sets(word, lexicon) for word in words]
        self.is_function = [word in lexicon.function_words for word in words]
        self.places: dict[str, list[int]] = {}
        self.stem_places: dict[str, list[int]] = {}
        for place, (word, word_stem) in enumerate(zip(words, self.stems, strict=True)):
            self.places.setdefault(word, []).append(place)
            self.stem_places.setdefault(word_stem, []).append(place)

    @functools.cached_property
    def phrases(self) -> dict[str, list[int]]:
        """Every phrase of up to seven words, with the places where it begins."""
        places: dict[str, list[int]] = {}
        for start in range(len(self.words)):
            for end in range(start + 1, min(start + MAX_PHRASE_LENGTH, len(self.words)) + 1):
                places.setdefault(" ".join(self.words[start:end]), []).append(start)
        return places


@functools.lru_cache(maxsize=100_000)
def _synonym_sets(word: str, lexicon: Lexicon) -> frozenset[int]:
    return lexicon.synonym_sets(word)


def alignment_statistics(caption: Sentence, reference: Sentence, paraphrases: Paraphrases) -> list[int]:
    """Return the 23 match statistics of a caption and a reference, in the order that `meteor` documents."""
    matches = _all_matches(caption, reference, paraphrases)
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


def _all_matches(caption: Sentence, reference: Sentence, paraphrases: Paraphrases) -> list[list[Match]]:
    """Return the proposed matches by the word of the reference where they start, in the order of the matchers."""
    found: list[list[Match]] = [[] for _ in reference.words]
    for start, word in enumerate(reference.words):
        for place in caption.places.get(word, ()):
            found[start].append(_match(start, 1, place, 1, _EXACT))
    if caption.words == reference.words:  # then nothing but equal words counts
        return found
    for start, (word, word_stem) in enumerate(zip(reference.words, reference.stems, strict=True)):
        for place in caption.stem_places.get(word_stem, ()):
            if word != caption.words[place]:
                found[start].append(_match(start, 1, place, 1, _STEM))
    caption_synonyms = [(place, sets) for place, sets in enumerate(caption.synonyms) if sets]
    for start, (word, sets) in enumerate(zip(reference.words, reference.synonyms, strict=True)):
        if sets:
            for place, other_sets in caption_synonyms:
                if not sets.isdisjoint(other_sets) and word != caption.words[place]:
                    found[start].append(_match(start, 1, place, 1, _SYNONYM))
    for start, length, place, other_length in _paraphrase_places(reference, caption, paraphrases):
        found[start].append(_match(start, length, place, other_length, _PARAPHRASE))
    for place, other_length, start, length in _paraphrase_places(caption, reference, paraphrases):
        found[start].append(_match(start, length, place, other_length, _PARAPHRASE))
    return found


def _paraphrase_places(one: Sentence, other: Sentence, paraphrases: Paraphrases) -> list[tuple[int, int, int, int]]:
    """Return (start, length, start in the other, length there) of phrases of `one` with a paraphrase in `other`."""
    found = []
    phrases = other.phrases.keys()
    for phrase in paraphrases.keys() & one.phrases.keys():
        table = paraphrases[phrase]
        for paraphrase in table.keys() & phrases:
            length, other_length = phrase.count(" ") + 1, paraphrase.count(" ") + 1
            order, places = table[paraphrase], other.phrases[paraphrase]
            found += [(start, length, order, place, other_length) for start in one.phrases[phrase] for place in places]
    return [(start, length, place, n) for start, length, _, place, n in sorted(found)]


_CHUNK = 1 << 60
_GAIN = 1 << 100


class _Path:
    """A partial alignment in the search.

    `rank` orders paths: more matched words first, then fewer chunks, then less distance, packed into one integer.
    """

    __slots__ = ("caption_used", "end", "last", "matches", "rank", "used")

    def __init__(self, rank: int, used: int, caption_used: int, matches: tuple[Match, ...], last: int) -> None:
        self.rank = rank
        self.used, self.caption_used = used, caption_used
        self.matches = matches
        self.end = 0  # the word of the reference up to which the path has decided
        self.last = last  # where its open chunk ends in the caption, -1 without one

    def take(self, match: Match) -> None:
        self.matches += (match,)
        self.rank -= match.gain * _GAIN
        if self.last not in (-1, match.caption_start):
            self.rank += _CHUNK
        self.end = match.start + match.length
        self.last = match.caption_start + match.caption_length

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
    paths = [_Path(0, used, caption_used, (), -1)]
    for current, proposed in enumerate(matches):
        paths.sort(key=_rank)
        following = []
        for path in paths[:_BEAM_SIZE]:
            if path.used >> current & 1:
                if current < path.end:
                    following.append(path)
                elif match := fixed.get(current):
                    path.take(match)
                    path.rank += abs(match.start - match.caption_start)
                    following.append(path)
                continue
            for match in proposed:
                if path.used & match.bits or path.caption_used & match.caption_bits:
                    continue
                new = _Path(
                    path.rank,
                    path.used | match.bits,
                    path.caption_used | match.caption_bits,
                    path.matches,
                    path.last,
                )
                new.take(match)
                path.rank += abs(match.start - match.caption_start)
                following.append(new)
            path.close_chunk()
            path.end += 1
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
