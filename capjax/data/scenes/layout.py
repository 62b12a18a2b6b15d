"""What a rendered scene contains, and how scenes are drawn at random.

A scene is one to three groups of identical shapes in a plain arrangement on a background. Nothing here knows pixels or
words: `rendering` paints a `Scene`, `captions` describes it, `claims` checks what a caption says.

Coordinates are fractions of the picture's side, x to the right and y downwards. Groups are stored in reading order:
left to right, top to bottom, and the inner shape before the one that holds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

Colour = Literal["red", "yellow", "green", "blue", "purple", "pink"]
Shape = Literal["circle", "square", "triangle", "star", "heart", "moon"]
Size = Literal["small", "large"]
Pattern = Literal["plain", "striped", "spotted"]
Background = Literal["day", "sunset", "night"]
Arrangement = Literal["single", "scattered", "row", "horizontal", "vertical", "nested"]
HeldOut = Literal["combinations", "pairs", "both"]
"""What is kept for test pictures: see `is_held_out`."""

COLOURS: tuple[Colour, ...] = ("red", "yellow", "green", "blue", "purple", "pink")
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "heart", "moon")
SIZES: tuple[Size, ...] = ("small", "large")
PATTERNS: tuple[Pattern, ...] = ("plain", "striped", "spotted")
BACKGROUNDS: tuple[Background, ...] = ("day", "sunset", "night")
ARRANGEMENTS: tuple[Arrangement, ...] = ("single", "scattered", "row", "horizontal", "vertical", "nested")
MAX_GROUPS = 3
MAX_COUNT = 4

SMALL_RADIUS = (0.082, 0.098)
"""Radii of small shapes; every large shape is at least 1.35 times as big as the biggest small one."""

KINDS = {"single": 0.18, "several": 0.22, "horizontal": 0.24, "vertical": 0.20, "nested": 0.10, "trio": 0.06}
"""How often each kind of scene is drawn."""


@dataclass(frozen=True)
class Placement:
    """Where one shape lies: centre and radius as fractions of the picture's side, rotation in degrees."""

    x: float
    y: float
    radius: float
    rotation: float


@dataclass(frozen=True)
class Group:
    """Identical shapes that a caption names together, such as three small red circles."""

    colour: Colour
    shape: Shape
    size: Size
    pattern: Pattern
    members: tuple[Placement, ...]

    @property
    def kind(self) -> tuple[Colour, Shape]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One picture's content; `texture_seed` fixes what no caption mentions (clouds, hills, shades)."""

    groups: tuple[Group, ...]
    arrangement: Arrangement
    background: Background
    texture_seed: int

    @property
    def num_objects(self) -> int:
        return sum(len(group.members) for group in self.groups)


def is_held_out(kind: tuple[Colour, Shape], background: Background, what: HeldOut = "combinations") -> bool:
    """Return whether this colour and shape on this background is kept for the test split.

    Args:
      kind: colour and shape.
      background: of the picture.
      what: `combinations`: each pair of colour and shape is held out on one of the three backgrounds, each background
        holds out a third of the pairs, and each colour and each shape is in as many of them. `pairs`: six pairs are
        held out on every background, each colour and each shape in one of them. `both`: either.
    """
    colour, shape = COLOURS.index(kind[0]), SHAPES.index(kind[1])
    on_this = (colour + shape) % len(BACKGROUNDS) == BACKGROUNDS.index(background)
    everywhere = colour == shape
    return {"combinations": on_this, "pairs": everywhere, "both": on_this or everywhere}[what]


def sample_scene(rng: Random, *, held_out: bool = False, what: HeldOut = "combinations") -> Scene:
    """Draw a scene.

    Args:
      rng: source of all randomness; the same state gives the same scene.
      held_out: whether the scene must show something that `is_held_out` (test pictures), or nothing of it.
      what: is held out.
    """
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    num_groups = {"single": 1, "several": 1, "trio": 3}.get(kind, 2)
    background = rng.choice(BACKGROUNDS)
    kinds = _sample_kinds(rng, num_groups, background, held_out, what)
    texture_seed = rng.getrandbits(32)
    place = {"single": _single, "several": _several, "nested": _nested, "trio": _trio}.get(kind)
    if place is None:
        groups, arrangement = _two_sides(rng, kinds, vertical=kind == "vertical")
    else:
        groups, arrangement = place(rng, kinds)
    return Scene(groups=groups, arrangement=arrangement, background=background, texture_seed=texture_seed)


def _sample_kinds(
    rng: Random, num_groups: int, background: Background, held_out: bool, what: HeldOut
) -> list[tuple[Colour, Shape]]:
    """Draw distinct (colour, shape) pairs; they share a colour or a shape more often than chance would have it."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    allowed = [pair for pair in pairs if held_out or not is_held_out(pair, background, what)]
    first = rng.choice([pair for pair in pairs if is_held_out(pair, background, what)] if held_out else allowed)
    kinds = [first]
    while len(kinds) < num_groups:
        others = [kind for kind in allowed if kind not in kinds]
        similar = [kind for kind in others if kind[0] == first[0]], [kind for kind in others if kind[1] == first[1]]
        draw = rng.random()
        kinds.append(rng.choice(similar[0] if draw < 0.12 else similar[1] if draw < 0.27 else others))
    rng.shuffle(kinds)
    return kinds


def _make_group(
    rng: Random,
    kind: tuple[Colour, Shape],
    centres: Sequence[tuple[float, float]],
    size: Size,
    large_radius: tuple[float, float] = (0.16, 0.19),
    pattern_share: float = 0.0,
) -> Group:
    """Put shapes of one kind at `centres`; some of the large ones carry a pattern, small ones have no room for it."""
    radius = rng.uniform(*(SMALL_RADIUS if size == "small" else large_radius))
    pattern: Pattern = "plain"
    if size == "large" and rng.random() < pattern_share:
        pattern = rng.choice(("striped", "spotted"))
    members = tuple(Placement(x, y, radius, rng.uniform(-10.0, 10.0)) for x, y in centres)
    return Group(colour=kind[0], shape=kind[1], size=size, pattern=pattern, members=members)


def _jitter(rng: Random, value: float, amount: float) -> float:
    return value + rng.uniform(-amount, amount)


def _single(rng: Random, kinds: list[tuple[Colour, Shape]]) -> tuple[tuple[Group, ...], Arrangement]:
    centre = tuple(_jitter(rng, rng.choice((0.25, 0.5, 0.75)), 0.04) for _ in range(2))
    return (_make_group(rng, kinds[0], [centre], rng.choice(SIZES), pattern_share=0.5),), "single"


def _several(rng: Random, kinds: list[tuple[Colour, Shape]]) -> tuple[tuple[Group, ...], Arrangement]:
    count = rng.choice((2, 3, 4))
    size = rng.choice(SIZES)
    if count > 2 and rng.random() < 0.5:
        gap = 0.3 if count == 3 else 0.235
        size = "small" if count == 4 else size
        y = rng.uniform(0.3, 0.7)
        xs = [0.5 + gap * (i - (count - 1) / 2) for i in range(count)]
        centres = [(_jitter(rng, x, 0.015), _jitter(rng, y, 0.02)) for x in xs]
        return (_make_group(rng, kinds[0], centres, size, (0.133, 0.14), 0.5),), "row"
    large = (0.15, 0.17) if count < 4 else (0.135, 0.145)
    margin, distance = (0.2, 0.4) if size == "large" else (0.14, 0.27)
    centres: list[tuple[float, float]] = []
    attempts = 0
    while len(centres) < count:
        attempts += 1
        if attempts % 60 == 0:  # the shapes put so far leave no room: start over
            centres.clear()
        x, y = rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin)
        if all((x - u) ** 2 + (y - v) ** 2 >= distance**2 for u, v in centres):
            centres.append((x, y))
    return (_make_group(rng, kinds[0], sorted(centres), size, large, 0.5),), "scattered"


def _two_sides(rng: Random, kinds: list[tuple[Colour, Shape]], vertical: bool) -> tuple[tuple[Group, ...], Arrangement]:
    """Put one group on the left and one on the right, or one at the top and one at the bottom."""
    counts = rng.choices([(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)], [0.7, 0.08, 0.08, 0.04, 0.04, 0.06])[0]
    middle = _jitter(rng, 0.5, 0.1)
    groups = []
    for kind, count, along in zip(kinds, counts, (0.26, 0.74), strict=True):
        size = rng.choice(SIZES)
        gap = 0.31 if size == "large" or count == 3 else 0.27
        centre = 0.5 if count > 1 else middle
        slack = 0.02 if count > 1 else 0.06
        across = [_jitter(rng, centre + gap * (i - (count - 1) / 2), slack) for i in range(count)]
        centres = [(_jitter(rng, along, 0.03), position) for position in across]
        if vertical:
            centres = [(y, x) for x, y in centres]
        groups.append(_make_group(rng, kind, centres, size, (0.16, 0.19) if count == 1 else (0.133, 0.14)))
    return tuple(groups), "vertical" if vertical else "horizontal"


def _nested(rng: Random, kinds: list[tuple[Colour, Shape]]) -> tuple[tuple[Group, ...], Arrangement]:
    """Put a small shape inside a big one; the roomy shapes hold, whatever the order they were drawn in."""
    roomy = ("circle", "square", "heart", "triangle")
    inner, outer = sorted(kinds, key=lambda kind: kind[1] in roomy)
    if outer[1] not in roomy:
        return _two_sides(rng, kinds, vertical=False)
    x, y = _jitter(rng, 0.5, 0.15), _jitter(rng, 0.5, 0.15)
    holder = _make_group(rng, outer, [(x, y)], "large", (0.28, 0.31))
    return (_make_group(rng, inner, [(x, y)], "small"), holder), "nested"


def _trio(rng: Random, kinds: list[tuple[Colour, Shape]]) -> tuple[tuple[Group, ...], Arrangement]:
    """Put three different shapes in a row."""
    middle = _jitter(rng, 0.5, 0.12)
    groups = []
    for kind, x in zip(kinds, (0.19, 0.5, 0.81), strict=True):
        centre = (_jitter(rng, x, 0.015), _jitter(rng, middle, 0.05))
        groups.append(_make_group(rng, kind, [centre], rng.choice(SIZES), (0.133, 0.14)))
    return tuple(groups), "row"


# Spatial facts, shared by the captions that state them and by the checker that verifies them.


def is_left_of(a: Sequence[Placement], b: Sequence[Placement]) -> bool:
    """Whether every centre of `a` lies clearly to the left of every centre of `b`."""
    return max(m.x for m in a) + 0.1 <= min(m.x for m in b)


def is_above(a: Sequence[Placement], b: Sequence[Placement]) -> bool:
    """Whether every centre of `a` lies clearly above every centre of `b`."""
    return max(m.y for m in a) + 0.1 <= min(m.y for m in b)


def is_inside(a: Sequence[Placement], b: Sequence[Placement]) -> bool:
    """Whether the one shape of `a` lies within the one shape of `b`."""
    if len(a) != 1 or len(b) != 1:
        return False
    (inner,), (outer,) = a, b
    distance = ((inner.x - outer.x) ** 2 + (inner.y - outer.y) ** 2) ** 0.5
    return distance + inner.radius <= outer.radius * 0.8


def is_beside(a: Sequence[Placement], b: Sequence[Placement]) -> bool:
    """Whether `a` and `b` lie next to each other at about the same height."""
    height = abs(sum(m.y for m in a) / len(a) - sum(m.y for m in b) / len(b))
    return (is_left_of(a, b) or is_left_of(b, a)) and height <= 0.2


def is_row(members: Sequence[Placement]) -> bool:
    """Whether three or more shapes stand in a horizontal line."""
    ys = [m.y for m in members]
    xs = sorted(m.x for m in members)
    return len(members) >= 3 and max(ys) - min(ys) <= 0.15 and min(b - a for a, b in pairwise(xs)) >= 0.15


def positions_of(members: Sequence[Placement]) -> frozenset[str]:
    """Names of the parts of the picture that hold all of `members`: left, top-left, middle and so on."""
    x = "left" if all(m.x < 0.4 for m in members) else "right" if all(m.x > 0.6 for m in members) else ""
    y = "top" if all(m.y < 0.4 for m in members) else "bottom" if all(m.y > 0.6 for m in members) else ""
    names = {name for name in (x, y, f"{y}-{x}" if x and y else "") if name}
    if all(abs(m.x - 0.5) < 0.12 and abs(m.y - 0.5) < 0.12 for m in members):
        names.add("middle")
    return frozenset(names)
