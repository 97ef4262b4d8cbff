"""The tiny world as a `World` of `runs/worlds`."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mlx_visalign.data.image_folder import Photo
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.questions import Mix
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.tiny_world import language
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import SPLITS, scene, split
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import replacing

SCENE_FILE = re.compile(r"scene-(\d+)\.png")  # named by the seed, from which the scene is drawn


class TinyWorld:
    """Coloured shapes; runs see only the split "unlabelled"."""

    name = "tiny-world"
    title = "scenes of the tiny world"
    model = "tiny"

    def photos(self, count: int, seed: int) -> list[Photo]:
        """The seed's own `count` scenes.

        Paths are relative to the run's folder, so that it can be moved.
        """
        return world_scenes("unlabelled", count, seed * count)

    def draw(self, folder: Path, count: int, seed: int) -> None:
        """Draw these scenes into FOLDER/images."""
        world_photos(folder, "unlabelled", count, seed * count)

    def mix(self, questions: int) -> Mix:
        return world_mix(questions)

    def benchmark(self, split: str, count: int) -> Benchmark:
        """The first `count` scenes of the split."""
        return world_benchmark(split, count)

    def labels(self, images: Sequence[str]) -> Annotations:
        """Objects in scenes, identified by file name."""
        found = {image: SCENE_FILE.fullmatch(Path(image).name) for image in images}
        return {image: frozenset(map(str, scene(int(match[1])).types)) for image, match in found.items() if match}


def world_mix(questions: int) -> Mix:
    """Prompts of the tiny world.

    A description, in the only wording that the tiny model knows, and questions about the 40 types of objects.
    """
    return Mix((DESCRIBE,), Vocabulary.from_rows(language.vocabulary(), "the tiny world"), questions)


def world_scenes(split_name: str, count: int, start: int) -> list[Photo]:
    """Scenes of a split with the file names of `world_photos`."""
    seeds = SPLITS[split_name]
    if start + count > len(seeds):
        raise UserError(
            f"The split {split_name} of the tiny world has {len(seeds):,} scenes; use a smaller --max-images or --seed."
        )
    return [Photo(f"scene-{seed}", f"images/scene-{seed}.png") for seed in seeds[start : start + count]]


def world_photos(folder: Path, split_name: str, count: int, start: int) -> list[Photo]:
    """Draw scenes into FOLDER/images; paths are relative to FOLDER."""
    photos = world_scenes(split_name, count, start)
    for photo, one in zip(photos, split(split_name, count, start), strict=True):
        with replacing(folder / photo.image, durable=False) as file:  # redrawn identically by every start of a run
            Image.fromarray(draw(one)).save(file, "PNG")
    return photos
