"""Scenes of coloured shapes with exact ground truth.

48x48 RGB, 3x3 cells, one to five objects. A scene is a function of its seed alone, so a split is a range of seeds and nothing
is stored:

    pretraining   for training the tiny CLIP and the tiny LLaVA
    unlabelled    for methods, as images only
    validation    for choosing settings
    held-out      for reporting only

Some objects occur together: every type (colour and shape) has one partner type, and an object's partner is in the scene about
half of the time. The biased annotator (`annotator`) reports partners that are absent; these are the hallucinations that a
method has to remove.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (220, 50, 45),
    "green": (60, 175, 60),
    "blue": (60, 95, 235),
    "yellow": (235, 215, 55),
    "purple": (145, 60, 195),
    "pink": (250, 120, 180),
    "white": (235, 235, 235),
    "cyan": (70, 205, 215),
}
RADII = {"small": 4.2, "large": 6.8}  # pixels

IMAGE_SIZE = 48
CELL = 16
CELLS = (IMAGE_SIZE // CELL) ** 2

SPLITS = {
    "pretraining": range(0, 1_000_000),
    "unlabelled": range(1_000_000, 2_000_000),
    "validation": range(2_000_000, 3_000_000),
    "held-out": range(4_000_000, 5_000_000),  # those from 3,000,000 were reported on until November 2026
}

COUNTS = (0.10, 0.25, 0.30, 0.20, 0.15)  # probability of 1, 2, .. 5 objects
PARTNER_RATE = 0.45  # probability that the next object is the partner of a present one
TYPICAL_RATE = 0.25  # otherwise: probability that a shape has its typical colour
NOISE = 6.0  # standard deviation of the pixel noise, of 255
COLOUR_JITTER = 9.0
CENTRE_JITTER = 1.0  # pixels


@dataclass(frozen=True)
class Type:
    """An object's type: a colour and a shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


TYPES = tuple(Type(colour, shape) for shape in SHAPES for colour in COLOURS)
TYPICAL_COLOUR = dict(zip(SHAPES, COLOURS, strict=False))


@dataclass(frozen=True)
class Thing:
    """One object: type, size and cell.

    Cell 0 is top left, 8 bottom right.
    """

    type: Type
    size: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """The objects in an image, in reading order."""

    seed: int
    things: tuple[Thing, ...]

    @cached_property
    def types(self) -> frozenset[Type]:
        return frozenset(thing.type for thing in self.things)


def partner(type: Type) -> Type:
    """The type that usually occurs with this one.

    An involution that changes both colour and shape. Colours pair up as c and c+4; the first four colours shift the shape by
    1..4, the others shift it back.
    """
    names = tuple(COLOURS)
    colour, shape = names.index(type.colour), SHAPES.index(type.shape)
    shift = 1 + colour % 4
    if colour >= 4:
        shift = -shift
    return Type(names[(colour + 4) % 8], SHAPES[(shape + shift) % 5])


def scene(seed: int) -> Scene:
    """The scene of this seed."""
    rng = np.random.default_rng((seed, 0))
    count = 1 + rng.choice(len(COUNTS), p=COUNTS)
    types: list[Type] = []
    for _ in range(count):
        types.append(_next_type(types, rng))
    cells = np.sort(rng.choice(CELLS, count, replace=False))
    order = rng.permutation(count)
    return Scene(seed, tuple(Thing(types[i], _size(rng), int(cell)) for i, cell in zip(order, cells, strict=True)))


def split(name: str, count: int, start: int = 0) -> Iterator[Scene]:
    """`count` scenes of a split, starting at index `start`."""
    return (scene(seed) for seed in SPLITS[name][start : start + count])


def _next_type(present: list[Type], rng: np.random.Generator) -> Type:
    if present and rng.random() < PARTNER_RATE:
        return partner(present[rng.integers(len(present))])
    shape = SHAPES[rng.integers(len(SHAPES))]
    typical = rng.random() < TYPICAL_RATE
    return Type(TYPICAL_COLOUR[shape] if typical else tuple(COLOURS)[rng.integers(len(COLOURS))], shape)


def _size(rng: np.random.Generator) -> str:
    return "small" if rng.random() < 0.5 else "large"
