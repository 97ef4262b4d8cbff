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

PER_IMAGE = 3  # questions about present objects, and as many about absent ones, as in the POPE paper
SPLITS: tuple[Split, ...] = ("random", "popular", "adversarial")
UNLABELLED = (
    "The content of these images is unknown, so CHAIR and POPE cannot be computed, and nothing here measures "
    "hallucination. Compare the answers with the images yourself."
)
LISTED = (
    "The list is assumed to be complete: any other object that a description names counts as hallucinated, even if it is in "
    "the image. These figures cannot be compared with those of other images, lists or vocabularies."
)


@dataclass(frozen=True)
class Benchmark:
    """Images by id, with optional labels, questions and exercises.

    Without labels and questions, only descriptions are generated.

    questions  yes/no questions by POPE split, "random" and so on
    exercises  questions of kinds not trained on, with known answers
    limits     what results on these images cannot show, stated in every report
    """

    name: str
    pictures: dict[str, Picture]
    annotations: Annotations = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(()))
    questions: dict[Split, list[Question]] = field(default_factory=dict)
    exercises: list[Exercise] = field(default_factory=list)
    limits: str = UNLABELLED


def listed_benchmark(file: Path, images: Path, vocabulary: Vocabulary, seed: int = 0) -> Benchmark:
    """A benchmark from a list of objects per image.

    The list is described in `object_labels`; its images are in the folder `images`. Raises `UserError` for an invalid list, an
    image that is missing or outside of the folder, and an object that is not in the vocabulary.
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
