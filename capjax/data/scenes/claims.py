"""Read a caption of a scene back into claims and check every one of them against the picture's content.

This makes "the caption is visibly right" a number: a caption is true when all its claims (counts, sizes, patterns,
colours, shapes, relations, positions, background) hold together for some reading of what it names. What cannot be read
as a caption at all counts as wrong. The words come from `captions`; the spatial facts from `layout`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, product

from capjax.data.scenes import captions as words
from capjax.data.scenes.layout import (
    COLOURS,
    MAX_COUNT,
    Placement,
    Scene,
    is_above,
    is_beside,
    is_inside,
    is_left_of,
    is_row,
    positions_of,
)

Members = tuple[Placement, ...]


@dataclass(frozen=True)
class Mention:
    """Something a caption names: `count` things; None where the caption leaves an attribute open."""

    count: int
    size: str | None = None
    pattern: str | None = None
    colour: str | None = None
    shape: str | None = None


@dataclass
class Claims:
    """All that a caption says.

    `relations` are triples (index of a mention, relation, index of another); `total` is a mention that sums up the
    others (two stars, one red and one blue); `arrangement` and `background` hold for the picture.
    """

    mentions: list[Mention] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    between: list[tuple[int, int, int]] = field(default_factory=list)
    positions: list[tuple[int, str]] = field(default_factory=list)
    total: Mention | None = None
    arrangement: str | None = None
    background: str | None = None


@cache
def _lexicon() -> dict[tuple[str, ...], tuple[str, str]]:
    """Map each phrase, as a tuple of words, to its kind (one letter) and what it stands for.

    Letters: o the word one, N count, S size, F pattern, C colour, H shape, K shapes (plural), R relation,
    P relation to what was named before, L position, G background, W arrangement, D both, A and, I with, T between,
    B is/are, E opening words.
    """
    entries: dict[str, tuple[str, str]] = {"one": ("o", "1"), "a": ("N", "1"), "an": ("N", "1")}
    entries |= {phrase: ("N", str(count)) for count, choices in words.COUNT_WORDS.items() for phrase, _ in choices}
    entries |= {colour: ("C", colour) for colour in COLOURS}
    entries |= {"shape": ("H", ""), "shapes": ("K", "")}
    for letter, table in (
        ("S", words.SIZE_WORDS),
        ("F", words.PATTERN_WORDS),
        ("H", words.SHAPE_WORDS),
        ("R", words.RELATION_PHRASES),
        ("L", words.POSITION_PHRASES),
        ("G", words.BACKGROUND_PHRASES),
    ):
        entries |= {phrase: (letter, value) for value, choices in table.items() for phrase, _ in choices}
    nouns = [(phrase, value) for phrase, (letter, value) in entries.items() if letter == "H" and value]
    entries |= {words.pluralise(phrase): ("K", value) for phrase, value in nouns}
    entries |= {phrase: ("P", value) for value, pair in words.PRONOUN_PHRASES.items() for phrase in pair}
    entries |= {phrase: ("E", value) for value, phrase in words.BACKGROUND_SCENES.items()}
    entries |= {phrase: ("E", "") for phrase in (*words.LEADS_SINGULAR, *words.LEADS_PLURAL)}
    entries |= {"in a row": ("W", "row"), "side by side": ("W", "beside")}
    entries |= {"both": ("D", ""), "and": ("A", ""), "with": ("I", ""), "between": ("T", "")}
    entries |= {"is": ("B", "1"), "are": ("B", "2")}
    return {tuple(phrase.split()): entry for phrase, entry in entries.items()}


def _tag(caption: str) -> list[tuple[str, str]] | None:
    """Cut a caption into known phrases, the longest first; None where a word is unknown."""
    tokens = [token for token in re.split(r"\W+", caption.lower()) if token]
    lexicon = _lexicon()
    longest = max(map(len, lexicon))
    tagged, start = [], 0
    while start < len(tokens):
        for length in range(longest, 0, -1):
            entry = lexicon.get(tuple(tokens[start : start + length]))
            if entry:
                tagged.append(entry)
                start += length
                break
        else:
            return None
    return tagged


_MENTION = re.compile(r"([No])([SFC]*)(H|K|o)?")
_SENTENCE = re.compile(r"E?(M(B?RM|B?L|B?W)?|RMBM|MIMP(AMP)?|M*MAM(W|DC)?|MLA?ML|LMA?LM|LM|MB?TMAM|TMAMBM)G?")


def read_caption(caption: str) -> Claims | None:
    """Return what a caption claims, or None if it is not a well-formed caption of a scene."""
    tagged = _tag(caption)
    if not tagged:
        return None
    letters = "".join(letter for letter, _ in tagged)
    claims, items, start = Claims(), [], 0
    elliptical: list[int] = []
    while start < len(tagged):
        match = _MENTION.match(letters, start)
        if not match:
            items.append(tagged[start])
            start += 1
            continue
        mention = _read_mention(tagged[start : match.end()], claims.mentions[-1:])
        if mention is None:
            return None
        if not match[3]:
            elliptical.append(len(claims.mentions))
        items.append(("M", str(len(claims.mentions))))
        claims.mentions.append(mention)
        start = match.end()
    if not _SENTENCE.fullmatch("".join(letter for letter, _ in items)):
        return None
    if any(letter == "D" for letter, _ in items) and [(m.count, m.colour) for m in claims.mentions] != [(1, None)] * 2:
        return None
    _interpret(items, claims)
    if elliptical:
        if elliptical != [1, 2] or claims.mentions[0].count != 2 or any(claims.mentions[i].count != 1 for i in (1, 2)):
            return None
        claims.total = claims.mentions.pop(0)
    return claims if _verbs_agree(items, claims) else None


def _read_mention(tagged: list[tuple[str, str]], previous: list[Mention]) -> Mention | None:
    """Read count, attributes and shape; a missing shape, or the pronoun one, is that of the mention before."""
    kinds = [letter for letter, _ in tagged]
    if any(kinds.count(letter) > 1 for letter in "SFC"):
        return None
    values = dict(tagged[1:])
    count, shape = int(tagged[0][1]), values.get("H", values.get("K"))
    if "H" in kinds or "K" in kinds:
        if ("K" in kinds) != (count > 1):
            return None
    elif previous and "C" in kinds:
        shape = previous[0].shape
    else:
        return None
    return Mention(count, values.get("S"), values.get("F"), values.get("C"), shape or None)


def _interpret(items: list[tuple[str, str]], claims: Claims) -> None:
    """Turn the phrases between mentions into relations, positions and facts about the whole picture."""
    sequence = "".join(letter for letter, _ in items)
    last, pending = -1, None
    opening = sequence.lstrip("E")[:1]
    for letter, value in items:
        if letter == "M":
            last = int(value)
            if pending:
                kind, content = pending
                if kind == "R":
                    claims.relations.append((last - 1, content, last))
                else:
                    claims.positions.append((last, content))
                pending = None
        elif letter == "R" and opening == "R":
            claims.relations.append((1, value, 0))
        elif letter == "R" or (letter == "L" and opening == "L"):
            pending = letter, value
        elif letter == "L":
            claims.positions.append((last, value))
        elif letter == "P":
            claims.relations.append((last, value, 0))
        elif letter == "T":
            claims.between.append((2, 0, 1) if opening == "T" else (0, 1, 2))
        elif letter == "W":
            claims.arrangement = value
        elif letter == "C":
            claims.mentions[:] = [replace(mention, colour=value) for mention in claims.mentions]
        elif value and letter in "GE":
            claims.background = value


def _verbs_agree(items: list[tuple[str, str]], claims: Claims) -> bool:
    """Whether background is named at most once, and is/are fit the number of their subject, before or after them."""
    backgrounds = sum(bool(value) and letter in "GE" for letter, value in items)
    inverted = items[0][0] in "RT"
    verbs = [(c if inverted else a, b) for a, b, c in zip(items, items[1:], items[2:], strict=False) if b[0] == "B"]
    return backgrounds <= 1 and all(
        (claims.mentions[int(subject)].count > 1) == (verb == "2") for (_, subject), (_, verb) in verbs
    )


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Return whether a caption is well formed and everything it says is true of the scene.

    A caption may leave things out (see `mentioned_share`). "Two stars" means that there are exactly two; "a star" that
    one stands by itself.
    """
    claims = read_caption(caption)
    return claims is not None and next(_readings(claims, scene), None) is not None


def mentioned_share(caption: str, scene: Scene) -> float:
    """Return the share (0 to 1) of the scene's objects that a true caption names; 0 for one that is not true."""
    claims = read_caption(caption)
    shares = [sum(map(len, reading)) / scene.num_objects for reading in _readings(claims, scene)] if claims else []
    return max(shares, default=0.0)


def _readings(claims: Claims, scene: Scene) -> Iterator[tuple[Members, ...]]:
    """Yield each way to tie the mentions to objects of the scene under which all claims hold."""
    if claims.background not in (None, scene.background):
        return
    if claims.total and not _candidates(claims.total, scene):
        return
    for reading in product(*(_candidates(mention, scene) for mention in claims.mentions)):
        if any(set(a) & set(b) for a, b in combinations(reading, 2)):
            continue
        named = tuple(member for members in reading for member in members)
        if (
            all(_related(reading[i], relation, reading[j]) for i, relation, j in claims.relations)
            and all(position in positions_of(reading[i]) for i, position in claims.positions)
            and all(_is_between(reading[i], reading[j], reading[k]) for i, j, k in claims.between)
            and (claims.arrangement != "row" or is_row(named))
            and (claims.arrangement != "beside" or _are_beside(reading))
        ):
            yield reading


def _candidates(mention: Mention, scene: Scene) -> list[Members]:
    """List what a mention can stand for: a single thing that fits, or all things that fit where they are as many."""
    groups = [
        group
        for group in scene.groups
        if mention.size in (None, group.size)
        and mention.pattern in (None, group.pattern)
        and mention.colour in (None, group.colour)
        and mention.shape in (None, group.shape)
    ]
    if mention.count == 1:
        return [group.members for group in groups if len(group.members) == 1]
    everything = tuple(member for group in groups for member in group.members)
    return [everything] if len(everything) == mention.count <= MAX_COUNT else []


def _related(a: Members, relation: str, b: Members) -> bool:
    match relation:
        case "left":
            return is_left_of(a, b)
        case "right":
            return is_left_of(b, a)
        case "above":
            return is_above(a, b)
        case "below":
            return is_above(b, a)
        case "inside":
            return is_inside(a, b)
        case _:
            return is_beside(a, b)


def _is_between(a: Members, b: Members, c: Members) -> bool:
    across = is_left_of(b, a) and is_left_of(a, c), is_left_of(c, a) and is_left_of(a, b)
    down = is_above(b, a) and is_above(a, c), is_above(c, a) and is_above(a, b)
    return any(across) or any(down)


def _are_beside(reading: tuple[Members, ...]) -> bool:
    """Whether two mentions, or the two things of one mention, lie side by side."""
    parts = reading if len(reading) == 2 else tuple((member,) for member in reading[0]) if len(reading) == 1 else ()
    return len(parts) == 2 and is_beside(*parts)
