"""Renders scenes as 48x48x3 uint8 images.

Shapes with soft edges and jittered colours on a dark background, with pixel noise.
"""

import numpy as np
from jaxtyping import Float, UInt8

from mlx_visalign.tiny_world.scenes import CELL, CENTRE_JITTER, COLOUR_JITTER, COLOURS, IMAGE_SIZE, NOISE, RADII, Scene, Thing

Plane = Float[np.ndarray, "48 48"]

_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 0.5


def draw(scene: Scene) -> UInt8[np.ndarray, "48 48 3"]:
    """Render a scene, deterministically."""
    rng = np.random.default_rng((scene.seed, 1))
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), rng.uniform(0, 60, 3))
    for thing in scene.things:
        cover = _cover(thing, rng)[..., None]
        colour = COLOURS[thing.type.colour] + rng.normal(0, COLOUR_JITTER, 3)
        image = image * (1 - cover) + colour * cover
    image += rng.normal(0, NOISE, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _cover(thing: Thing, rng: np.random.Generator) -> Plane:
    """The share of each pixel that the object covers, 0..1: its signed distance, softened over one pixel."""
    row, column = divmod(thing.cell, IMAGE_SIZE // CELL)
    x, y = (np.array([column, row]) + 0.5) * CELL + rng.uniform(-CENTRE_JITTER, CENTRE_JITTER, 2)
    radius = RADII[thing.size] * rng.uniform(0.92, 1.08)
    return np.clip(0.5 + _DEPTH[thing.type.shape](_X - x, _Y - y, radius), 0, 1)


# Signed distances from the outline in pixels: positive inside, negative outside. y points down.


def _circle(x: Plane, y: Plane, radius: float) -> Plane:
    return radius - np.hypot(x, y)


def _square(x: Plane, y: Plane, radius: float) -> Plane:
    return 0.85 * radius - np.maximum(abs(x), abs(y))


def _triangle(x: Plane, y: Plane, radius: float) -> Plane:
    sides = np.maximum(y, abs(x) * np.sqrt(0.75) - y / 2)
    return 0.66 * radius - sides


def _star(x: Plane, y: Plane, radius: float) -> Plane:
    """A five-pointed star: by symmetry one tenth of it suffices, whose edge is a line from the tip to the inner corner."""
    angle = abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    distance = np.hypot(x, y)
    tip, inner = 1.15 * radius, 0.45 * radius
    edge = np.array([inner * np.cos(np.pi / 5) - tip, inner * np.sin(np.pi / 5)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return normal[0] * (tip - distance * np.cos(angle)) - normal[1] * distance * np.sin(angle)


def _cross(x: Plane, y: Plane, radius: float) -> Plane:
    thin, long = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    return np.minimum(0.34 * radius - thin, radius - long)


_DEPTH = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross}
