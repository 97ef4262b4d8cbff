"""Worlds: images whose content is known, found by name in one table.

A world is drawn, as the tiny one is, or a public benchmark with its annotations. `images: tiny-world` in a recipe trains on
one and measures on it, `labels: tiny-world` takes its labels. A new world is a file with a class that has the parts of `World`,
in a room before this one, and its line in `WORLDS`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from mlx_visalign.data.image_folder import Photo
from mlx_visalign.data.questions import Mix
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.tiny_world.source import TinyWorld


@runtime_checkable
class World(Protocol):
    """Images with known objects.

    name   in recipes and after --images
    title  the plural of its images, for sentences: "scenes of the tiny world"
    model  which model is aligned on them where none is named; None: one must be named
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def model(self) -> str | None: ...

    def photos(self, count: int, seed: int) -> list[Photo]:
        """`count` images to train on, others for every seed; paths absolute, or relative to a run's folder."""

    def draw(self, folder: Path, count: int, seed: int) -> None:
        """Write the same images into a run's folder; nothing to do where they are files already."""

    def mix(self, questions: int) -> Mix:
        """What is asked about each image, with the vocabulary of its objects."""

    def benchmark(self, split: str, count: int) -> Benchmark:
        """`count` images of the split "validation" or "held-out", none of which is ever trained on."""

    def labels(self, images: Sequence[str]) -> Annotations:
        """The objects in those of the images, named by their paths, that are this world's."""


_worlds: tuple[World, ...] = (TinyWorld(),)
WORLDS: dict[str, World] = {world.name: world for world in _worlds}


def find_world(name: object) -> World | None:
    """The world called `name`; None for anything else that a recipe's `images` may be."""
    return WORLDS.get(name) if isinstance(name, str) else None
