"""Benchmarks: images, their object labels, and questions about them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.data.images import Picture
from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.evaluation.capability import Exercise
from mlx_visalign.evaluation.object_labels import Annotations, ObjectCounts, canonical_labels, read_list
from mlx_visalign.evaluation.pope import Question, Split, build_questions
from mlx_visalign.utils.errors import UserError, collect
from mlx_visalign.utils.links import image_inside

PER_IMAGE = 3  # questions about what is there, and as many about what is not; the number of the POPE paper
SPLITS: tuple[Split, ...] = ("random", "popular", "adversarial")
UNLABELLED = (
    "Nobody has said what is in these images, so there is no CHAIR and no POPE here, and nothing that measures "
    "hallucination. Compare the answers with the images yourself."
)
LISTED = (
    "The list is taken for all that is in an image: whatever a description names beyond it counts as made up, even if it "
    "is there. Figures of other images, lists or vocabularies cannot be compared with these."
)


@dataclass(frozen=True)
class Benchmark:
    """Images by id, and what is known of them; with pictures alone, only descriptions can be made.

    questions  yes/no questions by POPE split, "random" and so on
    exercises  questions of kinds that are not trained, where right answers are known
    limits     what figures on these images cannot show, for every report to say
    """

    name: str
    pictures: dict[str, Picture]
    annotations: Annotations = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(()))
    questions: dict[Split, list[Question]] = field(default_factory=dict)
    exercises: list[Exercise] = field(default_factory=list)
    limits: str = UNLABELLED


def listed_benchmark(file: Path, images: Path, vocabulary: Vocabulary, seed: int = 0) -> Benchmark:
    """The benchmark of a list (see `object_labels`) about images in the folder `images`.

    Raises `UserError` for a file that is no such list, an image that is missing or outside of the folder, and an object
    that the vocabulary does not know.
    """
    objects = read_list(file)
    if not objects:
        raise UserError(f"{file} lists no image.")
    jobs: list[Callable[[], Any]] = [
        lambda: collect(partial(image_inside, images, name, str(file)) for name in objects),
        lambda: canonical_labels(objects, vocabulary, str(file)),
    ]
    paths, annotations = collect(jobs)
    pictures: dict[str, Picture] = dict(zip(objects, paths, strict=True))
    counts = ObjectCounts.of(annotations.values())
    questions: dict[Split, list[Question]] = {
        split: build_questions(annotations, vocabulary.objects, counts, split, seed, PER_IMAGE) for split in SPLITS
    }
    return Benchmark(f"{len(pictures)} images of {file.name}", pictures, annotations, vocabulary, questions, limits=LISTED)
