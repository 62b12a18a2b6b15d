"""METEOR's alignment of captions with references (Denkowski and Lavie 2014).

Four matchers propose matches: equal words, equal stems, common synonym sets, paraphrases of up to seven words. A beam
search over the reference, left to right, picks those that cover the most words in the fewest and straightest chunks.
The search follows the published program in everything that decides between equals, quirks included, because the score
depends on it: see `choose`.

Pairs of a caption and a reference are aligned by the thousand: what belongs to them stands in flat arrays, one pair
after another, and every step is taken in all pairs at once.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt64

from capjax.metrics.meteor_resources import EXACT, REVERSE_PARAPHRASE, Relations
from capjax.metrics.meteor_text import Sentences, Spans

_BEAM_SIZE = 40
_SIEVE_MASK = (1 << 22) - 1  # the bits of a key that decide whether it passes the sieve
_ROW_BITS = 64
_LOW_BITS = np.array([(1 << number) - 1 for number in range(_ROW_BITS + 1)], np.uint64)


class Matches(NamedTuple):
    """Words of a pair's reference from `start` that match words of its caption from `caption_start`.

    They are ordered by pair, by start, and then as they are proposed.
    """

    pair: Int[np.ndarray, " M"]
    start: Int[np.ndarray, " M"]
    length: Int[np.ndarray, " M"]
    caption_start: Int[np.ndarray, " M"]
    caption_length: Int[np.ndarray, " M"]
    matcher: Int[np.ndarray, " M"]

    @property
    def end(self) -> Int[np.ndarray, " M"]:
        """Where the words of the reference end."""
        return self.start + self.length

    @property
    def caption_end(self) -> Int[np.ndarray, " M"]:
        """Where the words of the caption end."""
        return self.caption_start + self.caption_length

    @property
    def weight(self) -> Int[np.ndarray, " M"]:
        """How many words they count when alignments are compared.

        All but equal words weigh half, and the published program keeps its sums in integers: of a single word nothing
        is left.
        """
        halves = self.length // 2 + self.caption_length // 2
        return np.where(self.matcher == EXACT, self.length + self.caption_length, halves)

    def take(self, which: Shaped[np.ndarray, " _"]) -> "Matches":
        """Return some of them, by number or by a mask."""
        return Matches(*(column[which] for column in self))


class Aligner:
    """Aligns sentences of a set with each other."""

    def __init__(self, sentences: Sentences, relations: Relations) -> None:
        """Keep what may match: of the phrases of `sentences`, those that have `relations`."""
        self.sentences = sentences
        self.relations = relations
        self.sieve = np.zeros(_SIEVE_MASK + 1, bool)
        self.sieve[relations.key & _SIEVE_MASK] = True
        is_related = np.zeros(len(sentences.phrases), bool)
        is_related[np.concatenate(np.divmod(relations.key, len(sentences.phrases)))] = True
        related = (Spans(*(x[is_related[spans.phrase]] for x in spans)) for spans in sentences.spans)
        spans = Spans(*(np.concatenate(columns).astype(np.int64) for columns in zip(*related, strict=True)))
        order = np.lexsort((spans.length, spans.start))
        self.spans = Spans(*(column[order] for column in spans))
        self.first_span = np.searchsorted(self.spans.start, sentences.starts)
        self.end_span = np.searchsorted(self.spans.start, sentences.starts + sentences.lengths)

    def align(self, captions: Int[np.ndarray, " B"], references: Int[np.ndarray, " B"]) -> Matches:
        """Return the matches that make the best alignment of each pair.

        Args:
          captions: the number of each pair's caption among the sentences.
          references: the number of its reference.
        """
        lengths = self.sentences.lengths
        matches = self.propose(captions, references)
        return matches.take(choose(matches, lengths[captions], lengths[references]))

    def propose(self, captions: Int[np.ndarray, " B"], references: Int[np.ndarray, " B"]) -> Matches:
        """Return all matches of pairs, given as for `align`."""
        # Each phrase of a reference with each of its caption: few of them match, and the sieve lets hardly more pass.
        pair, span = _ranges(self.first_span[references], self.end_span[references])
        row, caption_span = _ranges(self.first_span[captions[pair]], self.end_span[captions[pair]])
        key = (self.spans.phrase[span] * len(self.sentences.phrases))[row] + self.spans.phrase[caption_span]
        sifted = np.flatnonzero(self.sieve[key & _SIEVE_MASK])
        row, caption_span, key = row[sifted], caption_span[sifted], key[sifted]
        found, relation = _ranges(
            np.searchsorted(self.relations.key, key), np.searchsorted(self.relations.key, key, side="right")
        )
        row, caption_span = row[found], caption_span[found]
        pair, span = pair[row], span[row]
        matches = Matches(
            pair,
            self.spans.start[span] - self.sentences.starts[references[pair]],
            self.spans.length[span],
            self.spans.start[caption_span] - self.sentences.starts[captions[pair]],
            self.spans.length[caption_span],
            self.relations.matcher[relation],
        )
        # The matchers go through the phrases of the reference, but the last one through those of the caption.
        outer_span = np.where(matches.matcher == REVERSE_PARAPHRASE, caption_span, span)
        table_place = self.relations.table_place[relation]
        matches = matches.take(np.lexsort((table_place, outer_span, matches.matcher, matches.start, pair)))
        # Between equal sentences nothing but equal words counts.
        return matches.take((matches.matcher == EXACT) | (captions != references)[matches.pair])


def _ranges(
    starts: Int[np.ndarray, " N"], ends: Int[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Lay ranges of numbers one after another: return from which range each number is, and the number."""
    lengths = ends - starts
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) + np.repeat(ends - np.cumsum(lengths), lengths)


class _Options(NamedTuple):
    """What a path may do at an event: take one of the matches there, or none; ordered by event, with none the last."""

    match: Int[np.ndarray, " O"]  # its number, -1 for none
    gain: Shaped[np.ndarray, " O"]  # what it takes from the rank of a path
    distance: Int[np.ndarray, " O"]  # what it adds to the ranks of the paths made after it
    caption_start: Int[np.ndarray, " O"]  # where in the caption a chunk has to end that it continues, -1 if none can
    caption_end: Int[np.ndarray, " O"]  # where in the caption the chunk ends that it leaves open, -1 if it leaves none
    words: UInt64[np.ndarray, "R O"]  # what has to be free: a bit for each word of the reference, then of the caption


class _Events(NamedTuple):
    """The steps of the search, ordered by pair."""

    first: Int[np.ndarray, " B"]  # of each pair
    number: Int[np.ndarray, " B"]
    first_option: Int[np.ndarray, " E"]
    end_option: Int[np.ndarray, " E"]
    options: _Options
    chunk: int  # what a chunk adds to a rank


class _Paths(NamedTuple):
    """Partial alignments, ordered by pair."""

    pair: Int[np.ndarray, " P"]
    rank: Shaped[np.ndarray, " P"]  # by pair, then more matched words first, then fewer chunks, then less distance
    caption_end: Int[np.ndarray, " P"]  # where in the caption the open chunk ends, -1 without one
    used: UInt64[np.ndarray, "R P"]  # the bits of words that are not free
    node: Int[np.ndarray, " P"]  # where the log of the search has what the path took last

    def take(self, which: Bool[np.ndarray, " P"]) -> "_Paths":
        """Return some of them, by a mask."""
        return _Paths(*(column[..., which] for column in self))


def choose(
    matches: Matches, caption_lengths: Int[np.ndarray, " B"], reference_lengths: Int[np.ndarray, " B"]
) -> Bool[np.ndarray, " M"]:
    """Return which matches make the best alignment of each pair, by a beam search over the words of its reference.

    Two quirks of the published program matter: half-weighted single words do not count when paths are compared, and
    the distance of a match is charged not to the path that takes it but to those that the program makes after it.

    Args:
      matches: all that are proposed.
      caption_lengths: words of each pair's caption.
      reference_lengths: words of its reference.
    """
    # Matches that no other contradicts are in every alignment.
    is_contested = _share_words(matches.pair, matches.start, matches.end, reference_lengths)
    is_contested |= _share_words(matches.pair, matches.caption_start, matches.caption_end, caption_lengths)
    events, paths = _plan(matches, is_contested, caption_lengths, reference_lengths)
    # The log of what paths took: the number of a match, or -1, and the node of the path that it was added to.
    taken, parents = [np.full_like(paths.node, -1)], [np.full_like(paths.node, -1)]
    best = []
    for step in range(events.number.max(initial=0)):
        is_through = events.number[paths.pair] == step
        best.append(_best_nodes(paths.take(is_through), events.chunk))
        paths, match = _extend(paths.take(~is_through), step, events)
        parents.append(paths.node)
        paths = paths._replace(node=sum(map(len, taken)) + np.arange(len(match)))
        taken.append(match)
    best.append(_best_nodes(paths, events.chunk))

    match, parent = np.concatenate(taken), np.concatenate(parents)
    is_chosen, node = ~is_contested, np.concatenate(best)
    while len(node):
        is_chosen[match[node][match[node] >= 0]] = True
        node = parent[node]
        node = node[node >= 0]
    return is_chosen


def _share_words(
    pair: Int[np.ndarray, " M"],
    start: Int[np.ndarray, " M"],
    end: Int[np.ndarray, " M"],
    lengths: Int[np.ndarray, " B"],
) -> Bool[np.ndarray, " M"]:
    """Return which parts of sentences have words in common with another part.

    Args:
      pair: which sentence each part is of.
      start: its first word.
      end: the one after its last.
      lengths: of the sentences.
    """
    first = (np.cumsum(lengths) - lengths)[pair]
    part, word = _ranges(first + start, first + end)
    is_shared = np.bincount(word)[word] > 1
    return np.bincount(part[is_shared], minlength=len(pair)) > 0


def _plan(
    matches: Matches,
    is_contested: Bool[np.ndarray, " M"],
    caption_lengths: Int[np.ndarray, " B"],
    reference_lengths: Int[np.ndarray, " B"],
) -> tuple[_Events, _Paths]:
    """Return the events of a search, and the paths it begins with: one for each pair.

    Each word of a reference that contested matches touch is an event, where paths may take one of those that start
    there. Each run of other words is one event as well: all paths take the certain matches there, and only whether the
    first of them continues a chunk depends on the path.
    """
    num_pairs = len(reference_lengths)
    contested, certain = matches.take(is_contested), matches.take(~is_contested)
    # The words of all references, one after another: their pairs, and what matches touch them.
    first_word = np.cumsum(reference_lengths) - reference_lengths
    pair = np.repeat(np.arange(num_pairs), reference_lengths)
    start, end = first_word[matches.pair] + matches.start, first_word[matches.pair] + matches.end
    is_open = np.zeros(len(pair), bool)
    is_open[_ranges(start[is_contested], end[is_contested])[1]] = True
    caption_start, caption_end = np.full((2, len(pair)), -1)
    match, word = _ranges(start[~is_contested], end[~is_contested])
    caption_start[word], caption_end[word] = certain.caption_start[match], certain.caption_end[match]

    # Events begin at each word that is open, after it, and with each pair.
    begins_event = np.ones(len(pair), bool)
    begins_event[1:] = is_open[1:] | is_open[:-1] | (pair[1:] != pair[:-1])
    first = np.flatnonzero(begins_event)
    last = np.append(first, len(pair))[1:] - 1
    event_of_word = np.cumsum(begins_event) - 1
    num_matches = np.bincount(event_of_word[start[is_contested]], minlength=len(first))

    # Distance is in a rank's lowest bits, then come chunks, words and the pair, so wide that none spills into the next.
    # Only absurdly long sentences need more than 64 bits for that, and then ranks are Python's integers.
    distance = np.abs(contested.start - contested.caption_start)
    num_words = reference_lengths + caption_lengths
    most_words, most_distance = num_words.max(initial=1), np.bincount(contested.pair, distance).max(initial=0)
    width = int(most_words + 1).bit_length()
    chunk = 1 << int(most_distance).bit_length()
    dtype = np.int64 if num_pairs * chunk << 2 * width < 1 << 63 else object

    num_rows = -(-int(most_words) // _ROW_BITS)
    offset = reference_lengths[contested.pair]
    caption_words = _bits(offset + contested.caption_start, offset + contested.caption_end, num_rows)
    place = first - first_word[pair[first]]
    with_match = _Options(
        match=np.flatnonzero(is_contested),
        gain=contested.weight.astype(dtype) * (chunk << width),
        distance=distance,
        caption_start=contested.caption_start,
        caption_end=contested.caption_end,
        words=_bits(contested.start, contested.end, num_rows) | caption_words,
    )
    without = _Options(
        match=np.full(len(first), -1),
        gain=np.zeros(len(first), dtype),
        distance=np.zeros(len(first), np.int64),
        caption_start=caption_start[first],
        caption_end=caption_end[last],
        words=_bits(place, place + is_open[first], num_rows),
    )
    ends = np.cumsum(num_matches)
    options = _Options(*(np.insert(one, ends, other, axis=-1) for one, other in zip(with_match, without, strict=True)))
    end_option = ends + np.arange(1, len(ends) + 1)
    number = np.bincount(pair[first], minlength=num_pairs)
    events = _Events(np.cumsum(number) - number, number, end_option - num_matches - 1, end_option, options, chunk)
    pairs = np.arange(num_pairs)
    return events, _Paths(
        pair=pairs,
        rank=pairs.astype(dtype) * (chunk << 2 * width),
        caption_end=np.full(num_pairs, -1),
        used=np.zeros((num_rows, num_pairs), np.uint64),
        node=pairs,
    )


def _bits(starts: Int[np.ndarray, " N"], ends: Int[np.ndarray, " N"], num_rows: int) -> UInt64[np.ndarray, "R N"]:
    """Return the bits from each start to each end, 64 of them in a row."""
    offsets = _ROW_BITS * np.arange(num_rows)[:, np.newaxis]
    below_start, below_end = (_LOW_BITS[np.clip(places - offsets, 0, _ROW_BITS)] for places in (starts, ends))
    return below_start ^ below_end


def _extend(paths: _Paths, step: int, events: _Events) -> tuple[_Paths, Int[np.ndarray, " Q"]]:
    """Return the best paths of each pair after its next event, and what match each took there, -1 for none.

    They are ordered by rank, between equals as they were made. Their nodes are still those of their parents.
    """
    options = events.options
    event = events.first[paths.pair] + step
    path, option = _ranges(events.first_option[event], events.end_option[event])
    is_free = ((paths.used[:, path] & options.words[:, option]) == 0).all(axis=0)
    # A path that is inside of a match of several words takes no other, and is to stay as it is.
    kept = np.flatnonzero(is_free | (options.match[option] < 0))
    path, option, is_inside = path[kept], option[kept], ~is_free[kept]

    distance = options.distance[option]
    charged = np.cumsum(distance) - distance
    charged -= charged[np.flatnonzero(np.diff(path, prepend=-1))][path]  # begins anew with each path
    caption_end = paths.caption_end[path]
    closes_chunk = (caption_end != -1) & (caption_end != options.caption_start[option]) & ~is_inside
    rank = paths.rank[path] - options.gain[option] + charged + np.where(closes_chunk, events.chunk, 0)

    order = np.argsort(rank, kind="stable")
    pair = paths.pair[path]  # in this order too, as it comes first in ranks
    is_kept = np.ones(len(order), bool)
    is_kept[_BEAM_SIZE:] = pair[_BEAM_SIZE:] != pair[:-_BEAM_SIZE]
    best = order[is_kept]
    path, option = path[best], option[best]
    extended = _Paths(
        pair=pair[best],
        rank=rank[best],
        caption_end=np.where(is_inside[best], caption_end[best], options.caption_end[option]),
        used=paths.used[:, path] | options.words[:, option],
        node=paths.node[path],
    )
    return extended, options.match[option]


def _best_nodes(paths: _Paths, chunk: int) -> Int[np.ndarray, " _"]:
    """Return the node of the best path of each pair that has any, where an open chunk counts as well."""
    order = np.argsort(paths.rank + np.where(paths.caption_end == -1, 0, chunk), kind="stable")
    return paths.node[order[np.flatnonzero(np.diff(paths.pair, prepend=-1))]]
