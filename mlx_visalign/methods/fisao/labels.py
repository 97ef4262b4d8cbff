"""What is really in images that a method may see: from somebody's list, or known because the images were made up."""

import re
from collections.abc import Sequence
from pathlib import Path

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.evaluation.object_labels import Annotations, listed_labels
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.utils.errors import UserError, listed

TINY_WORLD = "tiny-world"
SCENE = re.compile(r"scene-(\d+)\.png")


def read_labels(source: str, images: Sequence[str], vocabulary: Vocabulary) -> Annotations:
    """The objects in those of the images that `source` knows: a JSON file, or "tiny-world" for scenes drawn from it.

    Raises `UserError` for a file that is no such list, an object that the vocabulary does not know, or a source that
    knows none of the images.
    """
    known = _scenes(images) if source == TINY_WORLD else listed_labels(Path(source), images, vocabulary)
    if not known:
        raise UserError(listed(f"labels: {source} says of none of the {len(images)} images what is in it", images))
    return known


def _scenes(images: Sequence[str]) -> Annotations:
    found = {image: SCENE.fullmatch(Path(image).name) for image in images}
    return {image: frozenset(map(str, scene(int(match[1])).types)) for image, match in found.items() if match}
