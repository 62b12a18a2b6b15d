"""METEOR's alignments against those of a plain program, pair by pair."""

import collections
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capjax.metrics import meteor
from capjax.metrics.meteor_alignment import Aligner, Matches, choose
from capjax.metrics.meteor_resources import (
    EXACT,
    PARAPHRASE,
    REVERSE_PARAPHRASE,
    STEM,
    SYNONYM,
    Lexicon,
    Paraphrases,
    relations,
)
from capjax.metrics.meteor_text import Phrases, Sentences, stem

Words = tuple[str, ...]
BEAM_SIZE = 40
SYNSETS = {"dog": frozenset({1, 2}), "hound": frozenset({2}), "animal": frozenset({1, 3}), "cat": frozenset({3})}
LEXICON = Lexicon(frozenset({"the"}), {}, SYNSETS, {})
WORDS = ("dog", "dogs", "hound", "animal", "cat", "the")
STEMS = {word: stem(word) for word in WORDS}


class Match(NamedTuple):
    start: int
    length: int
    caption_start: int
    caption_length: int
    matcher: int

    def words(self) -> set[tuple[str, int]]:
        """The words that it takes of both sentences."""
        reference = {("reference", self.start + n) for n in range(self.length)}
        return reference | {("caption", self.caption_start + n) for n in range(self.caption_length)}

    def weight(self) -> int:
        if self.matcher == EXACT:
            return self.length + self.caption_length
        return self.length // 2 + self.caption_length // 2


class Path(NamedTuple):
    rank: tuple[int, int, int]  # matched words less than none, chunks, distance
    used: frozenset[tuple[str, int]]
    caption_end: int = -1
    chosen: tuple[int, ...] = ()

    def charged(self, chunks: int, distance: int) -> "Path":
        return self._replace(rank=(self.rank[0], self.rank[1] + chunks, self.rank[2] + distance))

    def closed(self) -> "Path":
        return self.charged(self.caption_end != -1, 0)._replace(caption_end=-1)

    def taking(self, number: int, match: Match) -> "Path":
        weight, chunks, distance = self.rank
        chunks += self.caption_end not in (-1, match.caption_start)
        return Path(
            (weight - match.weight(), chunks, distance),
            self.used | match.words(),
            match.caption_start + match.caption_length,
            (*self.chosen, number),
        )


def choose_plainly(matches: list[Match], reference_length: int) -> set[int]:
    """The numbers of the matches that the published program chooses."""
    counts = collections.Counter(word for match in matches for word in match.words())
    certain = {number for number, match in enumerate(matches) if all(counts[word] == 1 for word in match.words())}
    used = frozenset(word for number in certain for word in matches[number].words())
    paths = [Path((0, 0, 0), used)]
    for place in range(reference_length):
        following = []
        for path in sorted(paths, key=lambda path: path.rank)[:BEAM_SIZE]:
            starting = [number for number, match in enumerate(matches) if match.start == place]
            if ("reference", place) in path.used:
                for number in set(starting) & certain:
                    path = path.charged(0, abs(place - matches[number].caption_start)).taking(number, matches[number])
                following.append(path)
                continue
            for number in starting:
                if path.used.isdisjoint(matches[number].words()):
                    following.append(path.taking(number, matches[number]))
                    path = path.charged(0, abs(place - matches[number].caption_start))
            following.append(path.closed())
        paths = following
    paths = sorted(paths, key=lambda path: path.rank)[:BEAM_SIZE]
    return set(min(paths, key=lambda path: path.closed().rank).chosen)


def propose_plainly(caption: Words, reference: Words, table: dict[tuple[Words, Words], int]) -> list[Match]:
    """All matches of two sentences, by start and then as the published program proposes them."""

    def related(word: str, other: str, matcher: int) -> bool:
        if matcher == EXACT or word == other or caption == reference:
            return matcher == EXACT and word == other
        if matcher == STEM:
            return STEMS[word] == STEMS[other]
        return not LEXICON.synonym_sets(word).isdisjoint(LEXICON.synonym_sets(other))

    found = [
        Match(start, 1, place, 1, matcher)
        for matcher in (EXACT, STEM, SYNONYM)
        for start, word in enumerate(reference)
        for place, other in enumerate(caption)
        if related(word, other, matcher)
    ]
    if caption != reference:
        for start, length, _, place, other_length in paraphrases_plainly(reference, caption, table):
            found.append(Match(start, length, place, other_length, PARAPHRASE))
        for place, other_length, _, start, length in paraphrases_plainly(caption, reference, table):
            found.append(Match(start, length, place, other_length, REVERSE_PARAPHRASE))
    return sorted(found, key=lambda match: match.start)


def paraphrases_plainly(
    one: Words, other: Words, table: dict[tuple[Words, Words], int]
) -> list[tuple[int, int, int, int, int]]:
    """Place and length of phrases of one sentence, place in the table, place and length of paraphrases in the other."""

    def places(words: Words, phrase: Words) -> list[int]:
        return [place for place in range(len(words)) if words[place : place + len(phrase)] == phrase]

    return sorted(
        (place, len(phrase), table_place, other_place, len(paraphrase))
        for (phrase, paraphrase), table_place in table.items()
        for place in places(one, phrase)
        for other_place in places(other, paraphrase)
    )


def chosen_of_pairs(pairs: list[list[Match]], caption_length: int, reference_length: int) -> list[set[int]]:
    """The numbers of the matches that `choose` takes for pairs of sentences that are all of the same lengths."""
    rows = [(pair, *match) for pair, matches in enumerate(pairs) for match in matches]
    matches = Matches(*np.array(rows, np.int64).reshape(-1, 6).T)
    is_chosen = choose(matches, np.full(len(pairs), caption_length), np.full(len(pairs), reference_length))
    return [set(np.flatnonzero(is_chosen[matches.pair == pair]).tolist()) for pair in range(len(pairs))]


def matches_among(num_words: int, shift: int = 0, caption_shift: int = 0) -> st.SearchStrategy[list[Match]]:
    """Any matches between so many words from a place in the reference and from one in the caption."""
    places, lengths = st.integers(0, num_words - 1), st.integers(1, 3)
    matches = st.builds(Match, places, lengths, places, lengths, st.sampled_from([EXACT, STEM, PARAPHRASE]))
    shifted = matches.map(lambda match: match._replace(start=match.start + shift))
    shifted = shifted.map(lambda match: match._replace(caption_start=match.caption_start + caption_shift))
    return st.lists(shifted, max_size=12).map(lambda found: sorted(found, key=lambda match: match.start))


@given(st.lists(matches_among(8), min_size=1, max_size=5))
@settings(deadline=None, max_examples=300)
def test_any_matches(pairs: list[list[Match]]) -> None:
    assert chosen_of_pairs(pairs, 10, 10) == [choose_plainly(matches, 10) for matches in pairs]


@given(st.data(), st.integers(50, 70), st.integers(0, 150))
@settings(deadline=None, max_examples=100)
def test_words_beyond_the_64_of_one_row(data: st.DataObject, shift: int, caption_shift: int) -> None:
    pairs = data.draw(st.lists(matches_among(6, shift, caption_shift), min_size=1, max_size=3))
    expected = [choose_plainly(matches, shift + 8) for matches in pairs]
    assert chosen_of_pairs(pairs, caption_shift + 8, shift + 8) == expected


@given(st.lists(matches_among(4, caption_shift=2_000_000), min_size=2, max_size=2))
@settings(deadline=None, max_examples=20)
def test_ranks_beyond_64_bits(pairs: list[list[Match]]) -> None:
    assert chosen_of_pairs(pairs, 2_000_006, 6) == [choose_plainly(matches, 6) for matches in pairs]


repetitive = st.lists(st.sampled_from(("dog", "the")), min_size=4, max_size=9).map(tuple)


@given(st.lists(st.tuples(repetitive, repetitive), min_size=1, max_size=4))
@settings(deadline=None, max_examples=100)
def test_repeated_words(sentences: list[tuple[Words, Words]]) -> None:
    pairs = [propose_plainly(caption, reference, {}) for caption, reference in sentences]
    assert chosen_of_pairs(pairs, 9, 9) == [choose_plainly(matches, 9) for matches in pairs]


def test_only_the_best_40_paths_go_on() -> None:
    # None of these counts as a matched word, and each opens a chunk: to take none is best, but comes last in the order.
    matches = [Match(0, 1, place, 1, SYNONYM) for place in range(40)]
    assert chosen_of_pairs([matches[:39], matches], 40, 1) == [set(), {0}]


sentences = st.lists(st.sampled_from(WORDS), max_size=7).map(tuple)
phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(tuple)


@given(
    st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5),
    st.lists(st.tuples(phrases, phrases), unique=True, max_size=25),
)
@settings(deadline=None, max_examples=300)
def test_every_matcher(pairs: list[tuple[Words, Words]], entries: list[tuple[Words, Words]]) -> None:
    numbers = {words: number for number, words in enumerate(dict.fromkeys(itertools.chain(*pairs)))}
    known = Sentences(list(numbers))
    table = {entry: place for place, entry in enumerate(entries)}
    paraphrases = {tuple(known.phrases.numbers(encoded(entry)).tolist()): place for entry, place in table.items()}
    found = {pair: place for pair, place in paraphrases.items() if -1 not in pair}
    aligner = Aligner(known, relations(known, LEXICON, found))
    captions, references = (np.array([numbers[words] for words in side]) for side in zip(*pairs, strict=True))
    proposed = [propose_plainly(caption, reference, table) for caption, reference in pairs]
    assert by_pair(aligner.propose(captions, references), len(pairs)) == proposed
    chosen = [
        [matches[number] for number in sorted(choose_plainly(matches, len(reference)))]
        for matches, (_, reference) in zip(proposed, pairs, strict=True)
    ]
    assert by_pair(aligner.align(captions, references), len(pairs)) == chosen


def encoded(entry: tuple[Words, Words]) -> list[bytes]:
    """An entry as the published table has it."""
    return [" ".join(phrase).encode() for phrase in entry]


def by_pair(matches: Matches, num_pairs: int) -> list[list[Match]]:
    """The same as plain tuples."""
    found: list[list[Match]] = [[] for _ in range(num_pairs)]
    for pair, *match in zip(*(column.tolist() for column in matches), strict=True):
        found[pair].append(Match(*match))
    return found


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def paraphrases(phrases: Phrases) -> Paraphrases:
        return {tuple(phrases.numbers([b"the dog", b"hound"]).tolist()): 7}

    monkeypatch.setattr(meteor, "load_paraphrases", paraphrases)
    captions = [["the", "dog"], [], ["dog", "the", "cat"], ["animal"] * 4]
    references = [[["hound"], ["the", "dog"]], [[], ["cat"]], [["the", "dog"] * 5], [["dog"], [], ["cat", "animal"]]]
    whole = meteor._statistics(captions, references, LEXICON)
    assert whole[:, -2:].tolist() == [[2, 1], [2, 2], [0, 0], [0, 0], [2, 2], [0, 0], [0, 0], [2, 2]]
    monkeypatch.setattr(meteor, "_BLOCK_SIZE", 1)
    np.testing.assert_array_equal(meteor._statistics(captions, references, LEXICON), whole)
