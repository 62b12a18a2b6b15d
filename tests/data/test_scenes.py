"""Scenes: deterministic pictures, true captions, held-out pairs, and a checker of captions."""

from random import Random

import numpy as np
import pytest

from capjax.data.scenes import judge
from capjax.data.scenes.builder import Scenes, ScenesPairs, encode_picture, scene_of
from capjax.data.scenes.captions import describe
from capjax.data.scenes.claims import caption_is_true, mentioned_share, read_caption
from capjax.data.scenes.layout import (
    BACKGROUNDS,
    COLOURS,
    MAX_COUNT,
    SHAPES,
    Group,
    Placement,
    Scene,
    is_held_out,
    sample_scene,
)
from capjax.data.scenes.rendering import PALETTE, render_scene
from capjax.errors import CapjaxError
from capjax.images import decode_image
from capjax.types import CaptionRecord


def make_group(colour, shape, *centres, size="small", pattern="plain", radius=0.09):
    members = tuple(Placement(x, y, radius, 0.0) for x, y in centres)
    return Group(colour=colour, shape=shape, size=size, pattern=pattern, members=members)


STAR_LEFT_OF_CIRCLES = Scene(
    groups=(
        make_group("red", "star", (0.25, 0.5), size="large", pattern="striped", radius=0.17),
        make_group("blue", "circle", (0.75, 0.35), (0.75, 0.65)),
    ),
    arrangement="horizontal",
    background="night",
    texture_seed=1,
)
HEART_IN_SQUARE = Scene(
    groups=(
        make_group("pink", "heart", (0.5, 0.5)),
        make_group("green", "square", (0.5, 0.5), size="large", radius=0.3),
    ),
    arrangement="nested",
    background="day",
    texture_seed=2,
)
THREE_IN_A_ROW = Scene(
    groups=(
        make_group("red", "star", (0.2, 0.5)),
        make_group("blue", "star", (0.5, 0.52)),
        make_group("yellow", "moon", (0.8, 0.49)),
    ),
    arrangement="row",
    background="sunset",
    texture_seed=3,
)
TWO_STARS = Scene(
    groups=(make_group("red", "star", (0.3, 0.2)), make_group("blue", "star", (0.3, 0.8))),
    arrangement="vertical",
    background="day",
    texture_seed=4,
)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (STAR_LEFT_OF_CIRCLES, "a large striped red star to the left of two small blue circles at night"),
        (STAR_LEFT_OF_CIRCLES, "A red star, and two blue circles."),
        (STAR_LEFT_OF_CIRCLES, "two blue discs are right of a big star under a night sky"),
        (STAR_LEFT_OF_CIRCLES, "on the left a red star, on the right a pair of blue circles"),
        (STAR_LEFT_OF_CIRCLES, "there is a red star on the left"),
        (STAR_LEFT_OF_CIRCLES, "a night scene with a striped star"),
        (STAR_LEFT_OF_CIRCLES, "a red star with two tiny blue circles to its right"),
        (STAR_LEFT_OF_CIRCLES, "to the right of a red star are two blue circles"),
        (STAR_LEFT_OF_CIRCLES, "three shapes"),
        (HEART_IN_SQUARE, "a pink heart inside a green square in daylight"),
        (HEART_IN_SQUARE, "inside a big green square is a little heart"),
        (THREE_IN_A_ROW, "a red star, a blue star and a yellow moon in a row"),
        (THREE_IN_A_ROW, "a blue star between a yellow crescent and a red star"),
        (THREE_IN_A_ROW, "between a red star and a moon is a blue star at sunset"),
        (THREE_IN_A_ROW, "two stars and a moon"),
        (TWO_STARS, "two stars, one red and one blue"),
        (TWO_STARS, "a red star above a blue one"),
        (TWO_STARS, "a star at the top and a blue star at the bottom"),
    ],
)
def test_true_captions_are_true(scene, caption):
    assert caption_is_true(caption, scene)


@pytest.mark.parametrize(
    ("scene", "caption", "why"),
    [
        (STAR_LEFT_OF_CIRCLES, "a red star to the right of two blue circles", "relation"),
        (STAR_LEFT_OF_CIRCLES, "two blue circles with a red star to their right", "relation to a pronoun"),
        (STAR_LEFT_OF_CIRCLES, "to the left of a red star are two blue circles", "relation named first"),
        (STAR_LEFT_OF_CIRCLES, "a red star above two blue circles", "relation"),
        (STAR_LEFT_OF_CIRCLES, "a blue star to the left of two red circles", "colours swapped"),
        (STAR_LEFT_OF_CIRCLES, "a red circle to the left of two blue stars", "shapes swapped"),
        (STAR_LEFT_OF_CIRCLES, "a red star and three blue circles", "count"),
        (STAR_LEFT_OF_CIRCLES, "a red star and a blue circle", "one of two"),
        (STAR_LEFT_OF_CIRCLES, "a small red star", "size"),
        (STAR_LEFT_OF_CIRCLES, "a spotted red star", "pattern"),
        (STAR_LEFT_OF_CIRCLES, "a red star at sunset", "background"),
        (STAR_LEFT_OF_CIRCLES, "a red star on the right", "position"),
        (STAR_LEFT_OF_CIRCLES, "a red star and a red star", "one thing twice"),
        (THREE_IN_A_ROW, "a star and a moon, both red", "colour of both"),
        (STAR_LEFT_OF_CIRCLES, "two shapes", "three are there"),
        (HEART_IN_SQUARE, "a green square inside a pink heart", "inside out"),
        (HEART_IN_SQUARE, "inside a pink heart is a green square", "inside out, relation first"),
        (THREE_IN_A_ROW, "between a red star and a blue star is a moon", "between, relation first"),
        (HEART_IN_SQUARE, "a pink heart to the left of a green square", "relation"),
        (THREE_IN_A_ROW, "a red star between a blue star and a yellow moon", "between"),
        (THREE_IN_A_ROW, "three stars in a row", "count of a shape"),
        (THREE_IN_A_ROW, "a star to the right of a yellow moon", "no star lies there"),
        (TWO_STARS, "two stars, one red and one green", "colour of one"),
        (TWO_STARS, "two red stars", "count of a colour"),
        (TWO_STARS, "a red star and a blue star side by side", "arrangement"),
        (TWO_STARS, "a red star and a blue star in a row", "two are no row"),
    ],
)
def test_false_captions_are_false(scene, caption, why):
    assert read_caption(caption) is not None, "wrong for its content, not for its form"
    assert not caption_is_true(caption, scene), why


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a",
        "red star",
        "a red star a blue circle",
        "a red stars",
        "two star",
        "a red blue star",
        "a dog",
        "a star is",
        "a red star are above a heart",
        "two stars one red",
        "to the right of a red star is two blue circles",
        "one red and one blue",
        "a red star and a heart both red",
        "a red star to the left of",
        "and a star",
        "at night at night",
        "a star at night at sunset",
        "a night scene with a star at night",
    ],
)
def test_malformed_captions_are_not_read(caption):
    assert read_caption(caption) is None
    assert not caption_is_true(caption, STAR_LEFT_OF_CIRCLES)


def test_every_reference_is_true_names_everything_and_differs():
    for i in range(1500):
        scene = sample_scene(Random(i), held_out=i % 3 == 0)
        captions = describe(scene, Random(-1 - i))
        assert len(set(captions)) == 5
        for caption in captions:
            assert mentioned_share(caption, scene) == 1.0, (caption, scene)


def test_references_are_seldom_true_of_another_picture():
    scenes = [sample_scene(Random(f"picture {i}")) for i in range(200)]
    others = scenes[1:] + scenes[:1]
    pairs = [(c, other) for scene, other in zip(scenes, others, strict=True) for c in describe(scene, Random(0))]
    assert np.mean([caption_is_true(caption, other) for caption, other in pairs]) < 0.02


def test_swapping_a_word_makes_a_reference_false():
    """A colour, shape or relation word exchanged for another one of its kind is noticed in nearly all captions."""
    swaps = [dict(zip(words, words[1:] + words[:1], strict=True)) for words in (COLOURS, SHAPES, ("left", "right"))]
    noticed = []
    for i in range(300):
        scene = sample_scene(Random(f"swap {i}"))
        for caption in describe(scene, Random(i)):
            words = caption.split()
            for swap in swaps:
                position = next((k for k, word in enumerate(words) if word in swap), None)
                if position is not None:
                    changed = [*words[:position], swap[words[position]], *words[position + 1 :]]
                    noticed.append(not caption_is_true(" ".join(changed), scene))
    assert len(noticed) > 1000
    assert np.mean(noticed) > 0.99


def test_scenes_are_rich_and_keep_held_out_combinations_apart():
    scenes = [sample_scene(Random(f"rich {i}")) for i in range(3000)]
    seen = {(group.kind, scene.background) for scene in scenes for group in scene.groups}
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    assert seen == {(pair, b) for pair in pairs for b in BACKGROUNDS if not is_held_out(pair, b)}
    assert {scene.num_objects for scene in scenes} == set(range(1, MAX_COUNT + 1))
    assert all(sum(is_held_out(pair, b) for b in BACKGROUNDS) == 1 for pair in pairs), "new on one background each"
    for i in range(300):
        scene = sample_scene(Random(f"test {i}"), held_out=True)
        assert any(is_held_out(group.kind, scene.background) for group in scene.groups)


def test_shapes_lie_in_the_picture_and_apart():
    for i in range(2000):
        scene = sample_scene(Random(f"apart {i}"))
        members = [member for group in scene.groups for member in group.members]
        for m in members:
            assert 0.03 < m.x - 0.8 * m.radius and m.x + 0.8 * m.radius < 0.97
            assert 0.03 < m.y - 0.8 * m.radius and m.y + 0.8 * m.radius < 0.97
        if scene.arrangement != "nested":
            for a in range(len(members)):
                for b in range(a):
                    distance = np.hypot(members[a].x - members[b].x, members[a].y - members[b].y)
                    assert distance > 0.9 * (members[a].radius + members[b].radius), scene


def test_sizes_can_be_told_apart():
    radii = {"small": [], "large": []}
    for i in range(1000):
        for group in sample_scene(Random(f"size {i}")).groups:
            radii[group.size] += [member.radius for member in group.members]
    assert min(radii["large"]) > 1.3 * max(radii["small"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_shape_has_its_colour_at_its_place(colour, shape):
    """Judged from pixels: within the shape's disc, most pixels that differ from the empty scene are of its colour."""
    group = make_group(colour, shape, (0.3, 0.6), size="large", radius=0.18)
    with_shape = render_scene(Scene((group,), "single", "day", 5), 64).astype(int)
    empty = render_scene(Scene((), "single", "day", 5), 64).astype(int)
    y, x = np.mgrid[:64, :64] / 64
    changed = np.abs(with_shape - empty).sum(-1) > 40
    assert changed[np.hypot(x - 0.3, y - 0.6) > 0.32].sum() == 0
    inside = with_shape[changed & (np.hypot(x - 0.3, y - 0.6) < 0.2)]
    names = list(PALETTE)
    distance = np.stack([np.abs(inside - np.array(PALETTE[name])).sum(-1) for name in names])
    assert np.mean(distance.argmin(0) == names.index(colour)) > 0.6


def test_rendering_is_deterministic_and_varied():
    scene = sample_scene(Random(7))
    assert np.array_equal(render_scene(scene, 48), render_scene(scene, 48))
    other = Scene(scene.groups, scene.arrangement, scene.background, scene.texture_seed + 1)
    assert not np.array_equal(render_scene(scene, 48), render_scene(other, 48))
    assert render_scene(scene, 48).shape == (48, 48, 3)
    assert decode_image(encode_picture(scene, 48)).shape == (48, 48, 3)


def test_the_builder_writes_what_the_ids_say(tmp_path):
    examples = {}
    for run in ("first", "second"):
        builder = Scenes(num_pictures={"train": 6, "val": 3, "test": 5}, image_size=32, data_dir=tmp_path / run)
        builder.download_and_prepare()
        examples[run] = {split: list(builder.as_data_source(split)) for split in ("train", "val", "test")}
    for split, size in (("train", 6), ("val", 3), ("test", 5)):
        assert len(examples["first"][split]) == size
        for a, b in zip(examples["first"][split], examples["second"][split], strict=True):
            assert np.array_equal(a["image"], b["image"]) and list(a["captions"]) == list(b["captions"])
            scene = scene_of(int(a["image_id"]))
            assert all(caption_is_true(caption.decode(), scene) for caption in a["captions"])
            assert any(is_held_out(g.kind, scene.background) for g in scene.groups) == (split == "test")
    other = Scenes(num_pictures={"train": 2}, image_size=32, seed=1, data_dir=tmp_path / "other seed")
    other.download_and_prepare()
    pictures = examples["first"]["train"]
    assert not np.array_equal(next(iter(other.as_data_source("train")))["image"], pictures[0]["image"])


@pytest.mark.parametrize("num_pictures", [{"dev": 5}, {"train": 0}])
def test_bad_sizes_are_refused(num_pictures, tmp_path):
    with pytest.raises(CapjaxError, match="train, val and test"):
        Scenes(num_pictures=num_pictures, data_dir=tmp_path)


def test_the_harder_variant_never_shows_some_pairs_in_training(tmp_path):
    builder = ScenesPairs(num_pictures={"train": 40, "val": 5, "test": 10}, image_size=32, data_dir=tmp_path)
    builder.download_and_prepare()
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    assert sum(is_held_out(pair, "day", "pairs") for pair in pairs) == len(COLOURS)
    for split in ("train", "val", "test"):
        for example in builder.as_data_source(split):
            scene = scene_of(int(example["image_id"]))
            assert all(caption_is_true(caption.decode(), scene) for caption in example["captions"])
            assert any(is_held_out(g.kind, scene.background, "pairs") for g in scene.groups) == (split == "test")
            record = CaptionRecord(int(example["image_id"]), "", tuple(c.decode() for c in example["captions"]))
            assert judge.verdict(record, record.captions[0]) == "right"
            assert ("pair of colour and shape that no training" in judge.note([record])) == (split == "test")
    ids = {int(e["image_id"]) for split in ("train", "val", "test") for e in builder.as_data_source(split)}
    assert min(ids) >= 10_000_000, "apart from those of the other variant"
