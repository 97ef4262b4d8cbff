"""A benchmark of one's own: images, and a list of the objects in each.

    {"cat.jpg": ["cat", "sofa"], "street/1.jpg": ["car", "person", "traffic light"]}

is the whole format. Objects are named as in the vocabulary, by any of their phrases.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.data.images import Picture
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.evaluation.annotations import ObjectCounts
from mlx_visalign.evaluation.benchmark import PER_IMAGE, Benchmark
from mlx_visalign.evaluation.pope import Question, Split, build_questions
from mlx_visalign.utils.errors import UserError, collect
from mlx_visalign.utils.files import parse_json, read_text
from mlx_visalign.utils.links import image_inside
from mlx_visalign.utils.schema import convert

LISTED = (
    "The list is taken for all that is in an image: whatever a description names beyond it counts as made up, even if it "
    "is there. Figures of other images, lists or vocabularies cannot be compared with these."
)
SPLITS: tuple[Split, ...] = ("random", "popular", "adversarial")


def listed_benchmark(file: Path, images: Path, vocabulary: Vocabulary, seed: int = 0) -> Benchmark:
    """Read the list in `file`, of images in the folder `images`.

    Raises `UserError` for a file that is no such list, an image that is missing or outside of the folder, and an object
    that the vocabulary does not know.
    """
    listed = convert(parse_json(read_text(file), str(file)), dict[str, list[str]], str(file))
    if not listed:
        raise UserError(f"{file} lists no image.")
    jobs: list[Callable[[], Any]] = [
        lambda: collect(partial(image_inside, images, name, str(file)) for name in listed),
        lambda: named_by(vocabulary, listed, str(file)),
    ]
    paths, annotations = collect(jobs)
    pictures: dict[str, Picture] = dict(zip(listed, paths, strict=True))
    counts = ObjectCounts.of(annotations.values())
    questions: dict[Split, list[Question]] = {
        split: build_questions(annotations, vocabulary.objects, counts, split, seed, PER_IMAGE) for split in SPLITS
    }
    return Benchmark(f"{len(pictures)} images of {file.name}", pictures, annotations, vocabulary, questions, limits=LISTED)


def named_by(vocabulary: Vocabulary, objects: Mapping[str, Sequence[str]], where: str) -> dict[str, frozenset[str]]:
    """The objects of each image by their canonical names. UserError, beginning with `where`, for all that are unknown."""
    items = [(image, item) for image, some in objects.items() for item in some]
    names = collect(partial(canonical, item, vocabulary, f"{where}: {image}") for image, item in items)
    found: dict[str, set[str]] = {image: set() for image in objects}
    for (image, _), name in zip(items, names, strict=True):
        found[image].add(name)
    return {image: frozenset(some) for image, some in found.items()}


def canonical(item: str, vocabulary: Vocabulary, where: str) -> str:
    if item in vocabulary.objects:
        return item
    found = {mention.canonical for mention in vocabulary.mentions(item)}
    if len(found) != 1:
        raise UserError(f"{where}: the vocabulary knows no object called '{item}'. Extend it with --vocabulary.")
    return found.pop()
