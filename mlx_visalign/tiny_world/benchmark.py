"""The tiny world's benchmark: scenes with labels, questions and exercises."""

import random

import numpy as np
from PIL import Image

from mlx_visalign.data.images import Picture
from mlx_visalign.data.object_vocabulary import Vocabulary, question
from mlx_visalign.evaluation.benchmark import PER_IMAGE, Benchmark
from mlx_visalign.evaluation.capability import Exercise
from mlx_visalign.evaluation.object_labels import ObjectCounts
from mlx_visalign.evaluation.pope import Question, Split, YesNo, build_questions
from mlx_visalign.tiny_world import language, scenes
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.utils.seeding import number_for

COUNTED_SCENES = 5000  # pretraining scenes from which frequencies and co-occurrences are counted
WORLD = (
    "The tiny world of coloured shapes shows that the method works as intended. It does not show how much a real model would "
    "gain, and it does not rank methods."
)


def world_benchmark(split: str, count: int, seed: int = 0) -> Benchmark:
    """A labelled benchmark of the tiny world.

    It has the first `count` scenes of a split ("validation", "held-out"). Its adversarial questions are stricter than POPE's:
    every absent object asked about is the partner of a present one. POPE's rule asks about the most frequent companion that
    is absent; since partners are present half of the time, half of its questions would be about meaningless companions.
    """
    shown = {f"{split}-{scene.seed}": scene for scene in scenes.split(split, count)}
    annotations = {id: _names(scene) for id, scene in shown.items()}
    vocabulary = Vocabulary.from_rows(language.vocabulary(), "the tiny world's vocabulary")
    counts = ObjectCounts.of(map(_names, scenes.split("pretraining", COUNTED_SCENES)))
    questions: dict[Split, list[Question]] = {
        name: build_questions(annotations, vocabulary.objects, counts, name, seed, PER_IMAGE) for name in ("random", "popular")
    }
    questions["adversarial"] = [asked for id, scene in shown.items() for asked in _about_partners(id, scene, seed)]
    exercises = [exercise for id, scene in shown.items() for exercise in _exercises(id, scene, seed)]
    pictures: dict[str, Picture] = {id: Image.fromarray(draw(scene)) for id, scene in shown.items()}
    name = f"{count} {split} scenes of the tiny world"
    return Benchmark(name, pictures, annotations, vocabulary, questions, exercises, WORLD)


def _names(scene: scenes.Scene) -> frozenset[str]:
    return frozenset(map(str, scene.types))


def _exercises(id: str, scene: scenes.Scene, seed: int) -> list[Exercise]:
    drawn = language.exercises(scene, np.random.default_rng(number_for(seed, id, "exercises")))
    return [Exercise(f"{id}/exercise/{n}", id, one.prompt, one.answer, one.kind) for n, one in enumerate(drawn)]


def _about_partners(id: str, scene: scenes.Scene, seed: int) -> list[Question]:
    """As many questions about present objects as about absent partners; none if all partners are present."""
    there = sorted(_names(scene))
    absent = sorted({str(scenes.partner(type)) for type in scene.types}.difference(there))
    count = min(PER_IMAGE, len(absent))
    rng = random.Random(f"{seed} {id}")
    labels: dict[str, YesNo] = dict.fromkeys(rng.sample(there, count), "yes")
    labels |= dict.fromkeys(rng.sample(absent, count), "no")
    return [
        Question(f"{id}/adversarial/{number}", id, question(name), label) for number, (name, label) in enumerate(labels.items())
    ]
