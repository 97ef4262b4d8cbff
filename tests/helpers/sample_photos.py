"""A folder of images as a user has one, without labels: scenes of the tiny world, under names that say nothing."""

from pathlib import Path

from PIL import Image

from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import split


def write_photos(folder: Path, count: int) -> Path:
    """Write `count` images; returns their folder."""
    folder.mkdir(parents=True)
    for number, scene in enumerate(split("unlabelled", count)):
        Image.fromarray(draw(scene)).save(folder / f"{number}.png")
    return folder
