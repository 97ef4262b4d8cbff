"""Images and questions of the tiny world."""

from pathlib import Path

from PIL import Image

from mlx_visalign.data.image_folder import Photo
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.questions import Mix
from mlx_visalign.tiny_world import language
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import SPLITS, split
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import replacing


def world_mix(questions: int) -> Mix:
    """The same mix for the tiny world, in the one wording it knows and about its own 40 types."""
    return Mix((DESCRIBE,), Vocabulary.from_rows(language.vocabulary(), "the tiny world"), questions)


def world_scenes(split_name: str, count: int, start: int) -> list[Photo]:
    """Scenes of the tiny world, by the names that `world_photos` gives their files."""
    seeds = SPLITS[split_name]
    if start + count > len(seeds):
        raise UserError(f"The split {split_name} of the tiny world has {len(seeds):,} scenes; use a smaller --count or --seed.")
    return [Photo(f"scene-{seed}", f"images/scene-{seed}.png") for seed in seeds[start : start + count]]


def world_photos(folder: Path, split_name: str, count: int, start: int) -> list[Photo]:
    """Draw scenes of the tiny world into FOLDER/images; their paths are relative to FOLDER, which may thus be moved."""
    photos = world_scenes(split_name, count, start)
    for photo, scene in zip(photos, split(split_name, count, start), strict=True):
        with replacing(folder / photo.image, durable=False) as file:  # drawn again, the same, by every start of the run
            Image.fromarray(draw(scene)).save(file, "PNG")
    return photos
