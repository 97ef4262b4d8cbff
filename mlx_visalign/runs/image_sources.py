"""Image sources: a run's images, prompts and benchmark.

There are three: a world with known content (see `worlds`), the user's images with generated questions, and a file of
prompts. Stages, dry run and report use the `ImageSource` interface; no other module distinguishes the three.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from mlx_visalign.data.image_folder import Photo, called, content_id, find_photos, require_unchanged
from mlx_visalign.data.images import check_image
from mlx_visalign.data.object_vocabulary import Vocabulary, find_vocabulary
from mlx_visalign.data.questions import DESCRIPTION_PROMPTS, Mix, make_prompts, read_prompts
from mlx_visalign.data.records import Prompt
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.runs.recipe import Recipe
from mlx_visalign.runs.worlds import World, find_world
from mlx_visalign.utils.formatting import counted

PICTURES = 24  # images without labels described before and after; only the descriptions' length is measured on them


@runtime_checkable
class ImageSource(Protocol):
    """A run's images, with prompts, vocabulary and benchmark.

    place     where the images are, as saved in the settings of the stage `prompts`
    title     what was trained on, for the report
    argument  the value of --images in commands that the report shows
    """

    @property
    def place(self) -> str | list[str] | None: ...

    @property
    def title(self) -> str: ...

    @property
    def argument(self) -> str: ...

    def read(self) -> tuple[list[Photo], list[Prompt]]:
        """The images and the prompts about them.

        Paths are absolute, or relative to the run's folder.
        """

    def draw(self, folder: Path) -> None:
        """Write generated images into the run's folder."""

    def require_unchanged(self, contents: Mapping[str, str]) -> None:
        """Raise `UserError` for an image whose content has changed.

        `contents` are content ids by path.
        """

    def vocabulary(self) -> Vocabulary:
        """The objects that answers may name."""

    def benchmark(self, trained: Sequence[Prompt], held_out: Sequence[Prompt], folder: Path) -> Benchmark:
        """What is measured before and after training.

        `folder` is the run's.
        """

    def benchmark_size(self, trained: Sequence[Prompt], held_out: Sequence[Prompt]) -> int:
        """How many images the benchmark has."""

    def labels(self, images: Sequence[str]) -> Annotations:
        """The objects in those of these images that have labels."""


def source_of(recipe: Recipe) -> ImageSource:
    """The source of a recipe's images."""
    world = find_world(recipe.images)
    if world is not None:
        return WorldSource(recipe, world)
    return FolderSource(recipe) if recipe.prompts is None else PromptFileSource(recipe)


@dataclass(frozen=True)
class WorldSource:
    """A world's images, measured on others of that world."""

    recipe: Recipe
    world: World

    @property
    def place(self) -> str:
        return self.world.name

    @property
    def title(self) -> str:
        return f"{self._count} {self.world.title}"

    @property
    def argument(self) -> str:
        return self.world.name

    def read(self) -> tuple[list[Photo], list[Prompt]]:
        photos = self.world.photos(self._count, self.recipe.seed)
        return photos, make_prompts(photos, self.world.mix(self.recipe.questions_per_image), self.recipe.seed)

    def draw(self, folder: Path) -> None:
        self.world.draw(folder, self._count, self.recipe.seed)

    def require_unchanged(self, contents: Mapping[str, str]) -> None:
        """Do nothing: the same images are drawn every time."""

    def vocabulary(self) -> Vocabulary:
        return self.world.mix(0).vocabulary

    def benchmark(self, trained: Sequence[Prompt], held_out: Sequence[Prompt], folder: Path) -> Benchmark:
        return self.world.benchmark(self.recipe.split, self.recipe.eval_images)

    def benchmark_size(self, trained: Sequence[Prompt], held_out: Sequence[Prompt]) -> int:
        return self.recipe.eval_images

    def labels(self, images: Sequence[str]) -> Annotations:
        return self.world.labels(images)

    @property
    def _count(self) -> int:
        return self.recipe.max_images or 0  # a recipe for a world always sets it


@dataclass(frozen=True)
class _OwnImages:
    """What folders and prompt files share: unlabelled images that stay where they are."""

    recipe: Recipe

    argument = "PHOTOS"

    @property
    def place(self) -> str | list[str] | None:
        images = self.recipe.images
        if isinstance(images, tuple):
            return [os.path.abspath(image) for image in images]
        return None if images is None else os.path.abspath(images)

    @property
    def title(self) -> str:
        return f"the images in {called(self.recipe.images or self.recipe.prompts or ())}"

    def draw(self, folder: Path) -> None:
        """Do nothing: the images are files."""

    def require_unchanged(self, contents: Mapping[str, str]) -> None:
        require_unchanged(contents)

    def vocabulary(self) -> Vocabulary:
        return find_vocabulary(self.recipe.vocabulary)

    def benchmark(self, trained: Sequence[Prompt], held_out: Sequence[Prompt], folder: Path) -> Benchmark:
        """Held-out images, or trained ones if none are held out."""
        images = _first_images(held_out or trained)
        were = "that was" if len(images) == 1 else "that were"
        name = f"{counted(len(images), 'image')} {were} {'not ' if held_out else ''}trained on"
        return Benchmark(name, {image: folder / image for image in images})

    def benchmark_size(self, trained: Sequence[Prompt], held_out: Sequence[Prompt]) -> int:
        return len(_first_images(held_out or trained))

    def labels(self, images: Sequence[str]) -> Annotations:
        """None: the images are unlabelled."""
        return {}


@dataclass(frozen=True)
class FolderSource(_OwnImages):
    """Images in folders and files, with generated questions."""

    def read(self) -> tuple[list[Photo], list[Prompt]]:
        recipe = self.recipe
        mix = Mix(DESCRIPTION_PROMPTS, self.vocabulary(), recipe.questions_per_image)
        photos = find_photos(recipe.images or (), recipe.max_images, recipe.skip_bad)
        return photos, make_prompts(photos, mix, recipe.seed)


@dataclass(frozen=True)
class PromptFileSource(_OwnImages):
    """A file of prompts, and the images they are about."""

    def read(self) -> tuple[list[Photo], list[Prompt]]:
        recipe = self.recipe
        images = None if recipe.images is None else Path(str(recipe.images))
        prompts = read_prompts(Path(str(recipe.prompts)), images, recipe.skip_bad)
        names = dict.fromkeys(prompt.image for prompt in prompts)
        return [Photo(content_id(Path(name)), name, check_image(name)) for name in names], prompts


def _first_images(prompts: Sequence[Prompt]) -> list[str]:
    return list(dict.fromkeys(prompt.image for prompt in prompts))[:PICTURES]
