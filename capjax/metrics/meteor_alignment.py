"""METEOR's alignment of a caption with a reference (Denkowski and Lavie 2014, section 2).

Four matchers propose matches: equal words, equal stems, common synonym sets, paraphrases of up to seven words. A beam
search over the reference, left to right, picks those that cover the most words in the fewest and straightest chunks.
The search follows the published program in everything that decides between equals, quirks included, because the score
depends on it: see `_search`.
"""

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from capjax.metrics.meteor_resources import MAX_PHRASE_LENGTH, Lexicon, Paraphrases
from capjax.metrics.meteor_text import stem

_BEAM_SIZE = 40
_EXACT, _STEM, _SYNONYM, _PARAPHRASE = range(4)
_CHUNK, _GAIN = 1 << 30, 1 << 50  # what a chunk and a matched word count in a rank


class Match(NamedTuple):
    """Words of the reference from `start` that match words of the caption from `caption_start`."""

    start: int
    length: int
    caption_start: int
    caption_length: int
    stage: int
    words: int  # those of both sentences as bits: 2 i for the reference's, 2 i + 1 for the caption's
    gain: int  # what it takes from the rank of a path


@functools.lru_cache(maxsize=100_000)
def _match(start: int, length: int, caption_start: int, caption_length: int, stage: int) -> Match:
    words = sum(1 << 2 * place for place in range(start, start + length))
    words += sum(2 << 2 * place for place in range(caption_start, caption_start + caption_length))
    # All but equal words weigh half, and the program keeps its sums in integers: of a single word nothing is left.
    gain = length + caption_length if stage == _EXACT else length // 2 + caption_length // 2
    return Match(start, length, caption_start, caption_length, stage, words, gain * _GAIN)


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
    all_paraphrases: frozenset[str]

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
        self.num_function_words = sum(self.is_function)
        self.synonyms = [(place, word.synonyms) for place, word in enumerate(known) if word.synonyms]
        self.all_synonyms = frozenset().union(*(sets for _, sets in self.synonyms))

    @functools.cached_property
    def places(self) -> Mapping[str, list[int]]:
        """Where each word stands."""
        return _places(self.words)

    @functools.cached_property
    def stem_places(self) -> Mapping[str, list[int]]:
        """Where each stem stands."""
        return _places(self.stems)

    @functools.cached_property
    def phrases(self) -> frozenset[str]:
        """Every phrase of up to seven words."""
        text = " ".join(self.words)
        ends = list(itertools.accumulate(len(word) + 1 for word in self.words))
        starts = [0, *ends]
        return frozenset(
            [text[start : end - 1] for i, start in enumerate(starts) for end in ends[i : i + MAX_PHRASE_LENGTH]]
        )

    def find_paraphrases(self, paraphrases: Paraphrases) -> None:
        """Keep what the table says of the phrases."""
        self.paraphrases = {phrase: paraphrases[phrase] for phrase in self.phrases & paraphrases.keys()}
        self.all_paraphrases = frozenset().union(*self.paraphrases.values())

    def places_of(self, phrase: str) -> list[int]:
        """Return where a phrase begins."""
        words = tuple(phrase.split(" "))
        return [place for place in range(len(self.words)) if self.words[place : place + len(words)] == words]


def alignment_statistics(caption: Sentence, reference: Sentence) -> list[int]:
    """Return the 23 match statistics of a caption and a reference, in the order that `meteor` documents."""
    matches = _all_matches(caption, reference)
    chosen = _search(matches)
    statistics = [len(caption.words), len(reference.words)]
    statistics += [caption.num_function_words, reference.num_function_words]
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
    found = [
        [_match(start, 1, place, 1, _EXACT) for place in caption.places.get(word, ())]
        for start, word in enumerate(reference.words)
    ]
    if caption.words == reference.words:  # then nothing but equal words counts
        return found
    for start, word_stem in enumerate(reference.stems):
        if word_stem in caption.stem_places:
            for place in caption.stem_places[word_stem]:
                if reference.words[start] != caption.words[place]:
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


def _places(words: Sequence[str]) -> Mapping[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(word, []).append(place)
    return places


def _paraphrase_places(one: Sentence, other: Sentence) -> list[tuple[int, int, int, int]]:
    """Return (start, length, start in the other, length there) of phrases of `one` with a paraphrase in `other`."""
    common = one.all_paraphrases & other.phrases
    if not common:
        return []
    found = []
    for phrase, table in one.paraphrases.items():
        if common.isdisjoint(table):
            continue
        for paraphrase in table.keys() & common:
            length, other_length = phrase.count(" ") + 1, paraphrase.count(" ") + 1
            starts, places = one.places_of(phrase), other.places_of(paraphrase)
            found += [(start, length, table[paraphrase], place, other_length) for start in starts for place in places]
    return [(start, length, place, n) for start, length, _, place, n in sorted(found)]


# A partial alignment in the search is a tuple, as most of METEOR's time goes into making them:
#   its rank: more matched words first, then fewer chunks, then less distance, packed into one integer;
#   the words of both sentences that it has used, and those that are kept for certain matches, as in `Match.words`;
#   where its last match ends in the reference;
#   where its open chunk ends in the caption, -1 without one;
#   its matches, the last first: (match, (match, … None)).
_Path = tuple[int, int, int, int, Any]
_rank = operator.itemgetter(0)


def _search(matches: Sequence[Sequence[Match]]) -> list[Match]:
    """Return the best set of matches, by place in the reference.

    Two quirks of the published program matter: half-weighted single words do not count when paths are compared, and
    the distance of a match is charged not to the path that takes it but to those that the program makes after it.
    """
    fixed, used, matched = _certain_matches(matches)
    if len(fixed) == sum(map(len, matches)):  # nothing to decide anywhere
        return [fixed[start] for start in sorted(fixed)]
    paths: list[_Path] = [(0, used, 0, -1, None)]
    all_closed = True
    for current, proposed in enumerate(matches):
        is_matched = matched >> 2 * current & 1
        if all_closed and not is_matched:  # nothing to decide here, nor anything new since the last word
            continue
        all_closed = not is_matched
        if len(paths) > 1:
            paths.sort(key=_rank)
            del paths[_BEAM_SIZE:]
        if all_closed:
            paths = [path if path[3] == -1 else (path[0] + _CHUNK, path[1], path[2], -1, path[4]) for path in paths]
            continue
        following: list[_Path] = []
        for path in paths:
            rank, used, end, last, chosen = path
            if used >> 2 * current & 1:
                if current < end:
                    following.append(path)
                elif current in fixed:
                    match = fixed[current]
                    rank += abs(current - match.caption_start)
                    following.append(_with(match, rank, used, last, chosen))
                continue
            for match in proposed:
                if not used & match.words:
                    following.append(_with(match, rank, used, last, chosen))
                    rank += abs(current - match.caption_start)
            following.append((rank if last == -1 else rank + _CHUNK, used, end, -1, chosen))
        paths = following or paths[:1]
    paths.sort(key=_rank)
    best = min(paths[:_BEAM_SIZE], key=lambda path: path[0] if path[3] == -1 else path[0] + _CHUNK)
    found, chosen = [], best[4]
    while chosen:
        match, chosen = chosen
        found.append(match)
    return found[::-1]


def _with(match: Match, rank: int, used: int, last: int, chosen: Any) -> _Path:
    """Return the path that takes a match as well."""
    start, length, caption_start, caption_length, _, words, gain = match
    if last not in (-1, caption_start):
        rank += _CHUNK
    return rank - gain, used | words, start + length, caption_start + caption_length, (match, chosen)


def _certain_matches(matches: Sequence[Sequence[Match]]) -> tuple[dict[int, Match], int, int]:
    """Return the matches that no other contradicts, by place in the reference, the words they use, and all matched."""
    matched, matched_twice = 0, 0
    for match in itertools.chain.from_iterable(matches):
        matched_twice |= matched & match.words
        matched |= match.words
    fixed = {
        start: proposed[0]
        for start, proposed in enumerate(matches)
        if len(proposed) == 1 and not proposed[0].words & matched_twice
    }
    return fixed, sum(match.words for match in fixed.values()), matched
