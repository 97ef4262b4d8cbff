"""Registry of worlds: images with known content.

A world is drawn, like the tiny one, or is a public benchmark with its annotations. In a recipe, `images: tiny-world` trains
and measures on one, and `labels: tiny-world` uses its labels. A new world is a class with the parts of `World`, in a room
before this one, and an entry in `WORLDS`.
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

    name   its name in recipes and after --images
    title  what its images are called, in the plural: "scenes of the tiny world"
    model  the model to align where none is named; None: the user must name one
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def model(self) -> str | None: ...

    def photos(self, count: int, seed: int) -> list[Photo]:
        """`count` training images, different for every seed.

        Paths are absolute, or relative to a run's folder.
        """

    def draw(self, folder: Path, count: int, seed: int) -> None:
        """Write these images into a run's folder.

        Does nothing where they are files already.
        """

    def mix(self, questions: int) -> Mix:
        """The mix of prompts per image, with its vocabulary."""

    def benchmark(self, split: str, count: int) -> Benchmark:
        """`count` images of the split "validation" or "held-out".

        None of them is ever trained on.
        """

    def labels(self, images: Sequence[str]) -> Annotations:
        """The objects in those images that belong to this world.

        `images` are paths.
        """


_worlds: tuple[World, ...] = (TinyWorld(),)
WORLDS: dict[str, World] = {world.name: world for world in _worlds}


def find_world(name: object) -> World | None:
    """The world called `name`, or None.

    `name` may be anything that a recipe's `images` may be.
    """
    return WORLDS.get(name) if isinstance(name, str) else None
