"""Paint a `Scene`: sticker-like shapes with a soft shadow over a landscape in daylight, at sunset or at night.

Shapes are drawn large and scaled down, which smooths their edges. Everything that no caption mentions (shades, clouds,
hills, stars in the sky) varies with the scene's texture seed.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from random import Random

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from capjax.data.scenes.layout import Background, Colour, Group, Placement, Scene, Shape

SUPERSAMPLING = 4

PALETTE: dict[Colour, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "yellow": (250, 208, 44),
    "green": (46, 158, 82),
    "blue": (38, 103, 214),
    "purple": (126, 62, 178),
    "pink": (246, 138, 186),
}

SKIES: dict[Background, tuple[tuple[int, int, int], ...]] = {
    "day": ((158, 206, 238), (206, 230, 242), (248, 243, 228)),
    "sunset": ((96, 74, 128), (216, 120, 122), (252, 196, 136)),
    "night": ((14, 19, 46), (28, 36, 78), (58, 62, 112)),
}
"""Sky colours from the top of the picture to its bottom."""

HILLS: dict[Background, tuple[tuple[int, int, int], ...]] = {
    "day": ((190, 214, 178), (160, 194, 158)),
    "sunset": ((150, 88, 110), (104, 66, 96)),
    "night": ((30, 38, 76), (20, 26, 56)),
}
"""Colours of the far and the near hills."""


def render_scene(
    scene: Scene, size: int = 128, palette: Mapping[Colour, tuple[int, int, int]] = PALETTE
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Paint a scene as a square RGB picture of `size` pixels a side; the same scene gives the same pixels.

    Args:
      scene: what to paint.
      size: of the picture.
      palette: RGB of every colour that the scene names.
    """
    rng = Random(scene.texture_seed)
    canvas = _paint_background(scene.background, size, rng)
    order = reversed(scene.groups) if scene.arrangement == "nested" else scene.groups
    for group in order:
        shade = [channel * rng.uniform(0.94, 1.06) for channel in palette[group.colour]]
        for member in group.members:
            _paint_shape(canvas, group, member, shade)
    return (np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)


def _paint_background(background: Background, size: int, rng: Random) -> Float32[np.ndarray, "H W 3"]:
    ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
    stops = np.array(SKIES[background], np.float32) * np.array([rng.uniform(0.93, 1.07) for _ in range(3)], np.float32)
    heights = (0.0, rng.uniform(0.35, 0.65), 1.0)
    sky = np.stack([np.interp(ramp, heights, stops[:, c]) for c in range(3)], axis=-1)
    canvas = np.broadcast_to(sky[:, None, :], (size, size, 3)).astype(np.float32)
    x, y = ramp[None, :], ramp[:, None]
    if background == "night":
        for _ in range(rng.randint(10, 22)):
            row, column = rng.randrange(int(size * 0.75)), rng.randrange(size)
            canvas[row, column] += rng.uniform(50, 130)
    else:
        for _ in range(rng.randint(2, 4)):
            wide, high = rng.uniform(0.08, 0.2), rng.uniform(0.015, 0.04)
            distance = ((x - rng.random()) / wide) ** 2 + ((y - rng.uniform(0.05, 0.7)) / high) ** 2
            cloud = rng.uniform(0.15, 0.4) * np.exp(-distance)[..., None]
            canvas += (np.float32(255) - canvas) * cloud
    for colour, level in zip(HILLS[background], (rng.uniform(0.7, 0.84), rng.uniform(0.84, 0.95)), strict=True):
        waves = [(rng.uniform(0.015, 0.05), rng.uniform(2, 9), rng.uniform(0, 6.3)) for _ in range(2)]
        crest = level + sum(height * np.sin(frequency * x + phase) for height, frequency, phase in waves)
        cover = np.clip((y - crest) * size + 0.5, 0.0, 1.0)[..., None]
        tint = np.array(colour, np.float32) * np.float32(rng.uniform(0.93, 1.07))
        canvas += (tint - canvas) * cover
    return canvas


def _paint_shape(canvas: Float32[np.ndarray, "H W 3"], group: Group, place: Placement, shade: list[float]) -> None:
    """Blend one shape with its white rim and its shadow into the canvas, in place."""
    size = canvas.shape[0]
    radius = place.radius * size
    half = math.ceil(radius * 1.3 + size * 0.06)
    left, top = math.floor(place.x * size) - half, math.floor(place.y * size) - half
    scale, side = SUPERSAMPLING, 2 * half
    centre = ((place.x * size - left) * scale, (place.y * size - top) * scale)
    outline = [tuple(p) for p in _place_outline(group.shape, centre, radius * scale, place.rotation)]

    body_image = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(body_image).polygon(outline, fill=255)
    rim_image = body_image.copy()
    rim_width = max(2, round(size * 0.022 * scale))
    joint = "curve" if len(outline) <= 12 else None  # slow, and of no effect on curves cut into many short lines
    ImageDraw.Draw(rim_image).line([*outline, outline[0], outline[1]], fill=255, width=rim_width, joint=joint)
    body, rim = _reduce(body_image), _reduce(rim_image)
    shadow_image = Image.fromarray((rim * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(size * 0.014))
    shadow = np.roll(np.asarray(shadow_image, np.float32) / 255, (round(size * 0.02), round(size * 0.012)), (0, 1))

    fall = np.linspace(1.08, 0.92, side, dtype=np.float32)[:, None, None]
    fill = np.clip(np.array(shade, np.float32) * fall, 0, 255) * np.ones((side, side, 1), np.float32)
    if group.pattern != "plain":
        light = _reduce(_pattern_image(group.pattern, side * scale, centre, radius * scale))[..., None]
        fill += (np.float32(255) - fill) * light * np.float32(0.72)

    rows, columns = slice(max(top, 0), min(top + side, size)), slice(max(left, 0), min(left + side, size))
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    patch = canvas[rows, columns]
    patch *= 1 - np.float32(0.32) * shadow[inner][..., None]
    patch += (np.float32(250) - patch) * rim[inner][..., None]
    patch += (fill[inner] - patch) * body[inner][..., None]


def _reduce(image: Image.Image) -> Float32[np.ndarray, "H W"]:
    """Scale a supersampled mask down to coverage between 0 and 1."""
    return np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255


def _pattern_image(pattern: str, side: int, centre: tuple[float, float], radius: float) -> Image.Image:
    """Draw light stripes or dots, laid out from the shape's centre."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    step = radius * 0.46
    for i in range(-6, 7):
        if pattern == "striped":
            shift = centre[0] + i * step * 1.25
            ends = [(shift - side, centre[1] + side), (shift + side, centre[1] - side)]
            draw.line(ends, fill=255, width=round(step * 0.42))
            continue
        for j in range(-6, 7):
            x, y, dot = centre[0] + (i + 0.5 * (j % 2)) * step, centre[1] + j * step * 0.87, step * 0.24
            draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=255)
    return image


def _place_outline(
    shape: Shape, centre: tuple[float, float], radius: float, rotation: float
) -> Float32[np.ndarray, "n 2"]:
    """Rotate, scale and move a shape's outline; shapes with a clear upright stay within a few degrees of it."""
    angle = math.radians(rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float32)
    return unit_outline(shape) @ turn * np.float32(radius) + np.array(centre, np.float32)


@lru_cache
def unit_outline(shape: Shape) -> Float32[np.ndarray, "n 2"]:
    """Trace a shape around the origin, y downwards, so that all shapes look about as large as the unit circle."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False, dtype=np.float32)
    if shape == "circle":
        points = 0.94 * np.stack([np.cos(turn), np.sin(turn)], 1)
    elif shape == "square":
        points = 0.84 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32)
    elif shape == "triangle":
        points = np.array([(0, -1.08), (1.06, 0.8), (-1.06, 0.8)], np.float32)
    elif shape == "star":
        angles = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.18, 0.52)
        points = np.stack([reach * np.sin(angles), -reach * np.cos(angles)], 1)
    elif shape == "heart":
        rise = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        points = np.stack([16 * np.sin(turn) ** 3, -rise - 2.5], 1) / 15.5
    else:
        outer = np.linspace(0.22 * np.pi, 1.78 * np.pi, 40)
        tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
        bite_x = 0.62
        bite = math.hypot(tip_x - bite_x, tip_y)
        start = math.atan2(tip_y, tip_x - bite_x)
        inner = np.linspace(2 * np.pi - start, start, 28)[1:-1]
        arc = np.stack([bite_x + bite * np.cos(inner), bite * np.sin(inner)], 1)
        rim = np.stack([np.cos(outer), np.sin(outer)], 1)
        points = 1.06 * (np.concatenate([rim, arc]) + np.array([0.14, 0.0]))
    return np.asarray(points, np.float32)
