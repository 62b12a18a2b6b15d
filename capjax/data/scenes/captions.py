"""Describe a `Scene` in English: several true captions that differ in wording, order, focus and detail.

The word lists at the top are shared with `claims`, which reads such captions back. Every caption is true of the
picture and names all its shapes, but most leave something out (sizes, places, the background), as people do.

Shapes are named in reading order, except where the first words announce another one (on the right …, inside …). With an
order left to chance, only the colour just written would tell which shape comes next, and a decoder then learns which
pairs of colour and shape exist instead of where to look.
"""

from collections.abc import Callable
from random import Random

from capjax.data.scenes.layout import (
    Background,
    Group,
    Pattern,
    Placement,
    Scene,
    Shape,
    Size,
    is_beside,
    is_left_of,
    is_row,
    positions_of,
)

Weighted = tuple[tuple[str, float], ...]

SHAPE_WORDS: dict[Shape, Weighted] = {
    "circle": (("circle", 0.85), ("disc", 0.15)),
    "square": (("square", 0.85), ("box", 0.15)),
    "triangle": (("triangle", 1.0),),
    "star": (("star", 1.0),),
    "heart": (("heart", 1.0),),
    "moon": (("moon", 0.8), ("crescent", 0.2)),
}
PLURALS = {"box": "boxes"}
"""Plurals that are not formed with a mere s."""

SIZE_WORDS: dict[Size, Weighted] = {
    "small": (("small", 0.8), ("little", 0.1), ("tiny", 0.1)),
    "large": (("big", 0.8), ("large", 0.2)),
}
PATTERN_WORDS: dict[Pattern, Weighted] = {
    "plain": (),
    "striped": (("striped", 0.85), ("stripy", 0.15)),
    "spotted": (("spotted", 0.75), ("dotted", 0.25)),
}
COUNT_WORDS: dict[int, Weighted] = {
    2: (("two", 0.85), ("a pair of", 0.15)),
    3: (("three", 1.0),),
    4: (("four", 1.0),),
}
BACKGROUND_PHRASES: dict[Background, Weighted] = {
    "day": (("in daylight", 0.5), ("during the day", 0.2), ("under a pale sky", 0.3)),
    "sunset": (("at sunset", 0.6), ("in the evening", 0.2), ("under an orange sky", 0.2)),
    "night": (("at night", 0.6), ("in the dark", 0.15), ("under a night sky", 0.25)),
}
BACKGROUND_SCENES: dict[Background, str] = {
    "day": "a daytime scene with",
    "sunset": "an evening scene with",
    "night": "a night scene with",
}
RELATION_PHRASES: dict[str, Weighted] = {
    "left": (("to the left of", 0.7), ("left of", 0.3)),
    "right": (("to the right of", 0.7), ("right of", 0.3)),
    "above": (("above", 0.8), ("over", 0.2)),
    "below": (("below", 0.6), ("under", 0.2), ("underneath", 0.2)),
    "inside": (("inside", 0.85), ("within", 0.15)),
    "beside": (("next to", 0.6), ("beside", 0.4)),
}
"""How the place of one thing relative to another is said; the keys are the relations that `claims` verifies."""

PRONOUN_PHRASES: dict[str, tuple[str, str]] = {
    "right": ("to its right", "to their right"),
    "below": ("below it", "below them"),
}
"""The same, relative to what was named just before: singular and plural."""

POSITION_PHRASES: dict[str, Weighted] = {
    "middle": (("in the middle", 0.75), ("in the centre", 0.25)),
    "left": (("on the left", 1.0),),
    "right": (("on the right", 1.0),),
    "top": (("at the top", 1.0),),
    "bottom": (("at the bottom", 1.0),),
    "top-left": (("in the top left corner", 0.8), ("at the top left", 0.2)),
    "top-right": (("in the top right corner", 0.8), ("at the top right", 0.2)),
    "bottom-left": (("in the bottom left corner", 0.8), ("at the bottom left", 0.2)),
    "bottom-right": (("in the bottom right corner", 0.8), ("at the bottom right", 0.2)),
}
LEADS_SINGULAR = ("there is", "a picture of", "we see", "here is")
LEADS_PLURAL = ("there are", "a picture of", "we see", "here are")

_OPPOSITE = {"left": "right", "above": "below"}


def describe(scene: Scene, rng: Random, num_captions: int = 5) -> tuple[str, ...]:
    """Write `num_captions` different captions that are all true of the scene; `rng` is the source of all variety."""
    templates = _TEMPLATES[len(scene.groups)] if scene.arrangement != "nested" else _NESTED_TEMPLATES
    weights = dict(templates)
    captions: list[str] = []
    while len(captions) < num_captions:
        template = rng.choices(list(weights), list(weights.values()))[0]
        caption = template(scene, rng)
        if caption and caption not in captions:
            captions.append(caption)
            weights[template] /= 3  # the next caption shall rather use another sentence pattern
    return tuple(captions)


def pluralise(noun: str) -> str:
    """Return the plural of one of the shape words."""
    return PLURALS.get(noun, noun + "s")


def _pick(rng: Random, choices: Weighted) -> str:
    return rng.choices([text for text, _ in choices], [weight for _, weight in choices])[0]


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun(group: Group, rng: Random, count: int | None = None) -> str:
    noun = _pick(rng, SHAPE_WORDS[group.shape])
    return pluralise(noun) if (count or len(group.members)) > 1 else noun


def _counted(words: str, count: int, rng: Random) -> str:
    return _article(words) if count == 1 else f"{_pick(rng, COUNT_WORDS[count])} {words}"


def _phrase(group: Group, scene: Scene, rng: Random, colour: bool = True) -> str:
    """Name a group: count, perhaps its size and pattern, its colour and shape. Sizes matter most where they differ."""
    words = []
    sizes_differ = len({other.size for other in scene.groups}) > 1
    if rng.random() < (0.6 if len(scene.groups) == 1 else 0.45 if sizes_differ else 0.15):
        words.append(_pick(rng, SIZE_WORDS[group.size]))
    if group.pattern != "plain" and rng.random() < 0.7:
        words.append(_pick(rng, PATTERN_WORDS[group.pattern]))
    if colour and not (_shape_tells(scene) and rng.random() < 0.2):
        words.append(group.colour)
    return _counted(" ".join([*words, _noun(group, rng)]), len(group.members), rng)


def _shape_tells(scene: Scene) -> bool:
    """Whether the shape alone says which of several groups is meant."""
    return len(scene.groups) > 1 and len({group.shape for group in scene.groups}) == len(scene.groups)


def _lead(rng: Random, plural: bool, share: float = 0.2) -> str:
    return rng.choice(LEADS_PLURAL if plural else LEADS_SINGULAR) + " " if rng.random() < share else ""


def _maybe_background(scene: Scene, rng: Random, share: float = 0.4) -> str:
    return " " + _pick(rng, BACKGROUND_PHRASES[scene.background]) if rng.random() < share else ""


def _be(group: Group) -> str:
    return "is" if len(group.members) == 1 else "are"


def _all_members(scene: Scene) -> list[Placement]:
    return [member for group in scene.groups for member in group.members]


def _relation(scene: Scene) -> str:
    """The relation of the first of two groups to the second."""
    if scene.arrangement == "nested":
        return "inside"
    return "left" if is_left_of(scene.groups[0].members, scene.groups[1].members) else "above"


# Sentence patterns. Each returns a caption, or an empty string where it does not fit the scene.


def _one_group(scene: Scene, rng: Random) -> str:
    (group,) = scene.groups
    place = ""
    positions = sorted(positions_of(group.members), key=len)
    if is_row(group.members) and rng.random() < 0.7:
        place = " in a row"
    elif positions and rng.random() < 0.65:
        place = " " + _pick(rng, POSITION_PHRASES[positions[-1]])
    elif len(group.members) == 2 and is_beside(group.members[:1], group.members[1:]) and rng.random() < 0.5:
        place = " side by side"
    lead = _lead(rng, len(group.members) > 1)
    verb = f" {_be(group)}" if place and not lead and rng.random() < 0.25 else ""
    return lead + _phrase(group, scene, rng) + verb + place + _maybe_background(scene, rng)


def _background_first(scene: Scene, rng: Random) -> str:
    return f"{BACKGROUND_SCENES[scene.background]} {_list(scene.groups, scene, rng)}"


def _list(groups: tuple[Group, ...], scene: Scene, rng: Random) -> str:
    names = [_phrase(group, scene, rng) for group in groups]
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _enumeration(scene: Scene, rng: Random) -> str:
    """A and B; A, B and C."""
    groups = scene.groups
    place = ""
    if is_row(_all_members(scene)) and rng.random() < 0.5:
        place = " in a row"
    elif len(groups) == 2 and is_beside(groups[0].members, groups[1].members) and rng.random() < 0.5:
        place = " side by side"
    plural = len(groups[0].members) > 1
    return _lead(rng, plural, 0.15) + _list(groups, scene, rng) + place + _maybe_background(scene, rng)


def _total(scene: Scene, rng: Random) -> str:
    """Two stars, one red and one blue; two red shapes; three shapes in a row."""
    groups, total = scene.groups, scene.num_objects
    if any(len(group.members) > 1 for group in groups):
        return ""
    count = _pick(rng, COUNT_WORDS[total])
    if len(groups) == 2 and groups[0].shape == groups[1].shape:
        return f"{count} {_noun(groups[0], rng, 2)}, one {groups[0].colour} and one {groups[1].colour}"
    if len(groups) == 2 and groups[0].colour == groups[1].colour:
        a, b = (_phrase(group, scene, rng, colour=False) for group in groups)
        return f"{a} and {b}, both {groups[0].colour}"
    place = " in a row" if is_row(_all_members(scene)) else ""
    return f"{count} shapes{place}{_maybe_background(scene, rng, 0.8)}" if rng.random() < 0.3 else ""


def _first_to_second(scene: Scene, rng: Random) -> str:
    """A star is to the left of a circle."""
    a, b = scene.groups
    relation = _relation(scene)
    if relation == "left" and rng.random() < 0.15 and is_beside(a.members, b.members):
        relation = "beside"
    lead = _lead(rng, len(a.members) > 1, 0.12)
    verb = f" {_be(a)}" if not lead and rng.random() < 0.3 else ""
    place = _pick(rng, RELATION_PHRASES[relation])
    background = _maybe_background(scene, rng, 0.25)
    return f"{lead}{_phrase(a, scene, rng)}{verb} {place} {_phrase(b, scene, rng)}{background}"


def _relation_first(scene: Scene, rng: Random) -> str:
    """To the right of a star is a circle; inside a square is a heart."""
    anchor, other = scene.groups
    relation = _OPPOSITE.get(_relation(scene))
    if relation is None:
        anchor, other, relation = other, anchor, "inside"
    place = _pick(rng, RELATION_PHRASES[relation])
    return f"{place} {_phrase(anchor, scene, rng)} {_be(other)} {_phrase(other, scene, rng)}"


def _with_pronoun(scene: Scene, rng: Random) -> str:
    """A star with a circle to its right."""
    a, b = scene.groups
    place = PRONOUN_PHRASES[_OPPOSITE[_relation(scene)]][len(a.members) > 1]
    return f"{_phrase(a, scene, rng)} with {_phrase(b, scene, rng)} {place}"


def _sides(scene: Scene, rng: Random) -> str:
    """On the left a star, on the right a circle; a star at the top and a circle at the bottom."""
    names = ("left", "right") if _relation(scene) == "left" else ("top", "bottom")
    if any(name not in positions_of(group.members) for group, name in zip(scene.groups, names, strict=True)):
        return ""
    a, b = (_phrase(group, scene, rng) for group in scene.groups)
    at, bt = (_pick(rng, POSITION_PHRASES[name]) for name in names)
    if rng.random() < 0.5:
        return f"{a} {at} and {b} {bt}"
    return f"{at} {a}, {bt} {b}" if rng.random() < 0.5 else f"{bt} {b}, {at} {a}"


def _between(scene: Scene, rng: Random) -> str:
    """Between a star and a circle is a heart."""
    a, b, c = (_phrase(group, scene, rng) for group in scene.groups)
    return f"between {a} and {c} {_be(scene.groups[1])} {b}"


_Template = Callable[[Scene, Random], str]
_NESTED_TEMPLATES: dict[_Template, float] = {
    _first_to_second: 4.0,
    _relation_first: 1.5,
    _background_first: 0.6,
    _enumeration: 0.8,
    _total: 0.6,
}
_TEMPLATES: dict[int, dict[_Template, float]] = {
    1: {_one_group: 4.0, _background_first: 0.5},
    2: {
        _first_to_second: 4.0,
        _relation_first: 0.8,
        _enumeration: 1.2,
        _with_pronoun: 0.8,
        _sides: 1.0,
        _background_first: 0.6,
        _total: 0.8,
    },
    3: {_enumeration: 4.0, _between: 1.5, _background_first: 1.0, _total: 0.5},
}
