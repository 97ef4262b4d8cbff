"""Three images, what is in them, questions about them, and evaluations with answers made up for a test."""

import numpy as np
from PIL import Image

from mlx_visalign.data.object_vocabulary import Entry, Vocabulary
from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.pope import Question
from mlx_visalign.evaluation.runner import Evaluation, Protocol

PROTOCOL = Protocol("What is here?", max_tokens=10, question_tokens=4)
OBJECTS = ("cat", "dog", "cup")
TRUTH = {"a": frozenset({"cat"}), "b": frozenset({"cat", "dog"}), "c": frozenset[str]()}


def asked(image, name, label, split="random"):
    return Question(f"{image}/{split}/{name}", image, f"Is there a {name} in the image?", label)


def benchmark():
    pictures = {}
    for index, image in enumerate(TRUTH):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        pictures[image] = Image.fromarray(pixels)
    questions = [asked("a", "cat", "yes"), asked("a", "cup", "no"), asked("b", "cat", "yes")]
    others = [asked("a", "cat", "yes", "popular"), asked("a", "dog", "no", "popular")]
    vocabulary = Vocabulary(tuple(Entry(name, (name,)) for name in OBJECTS))
    return Benchmark("three images", pictures, TRUTH, vocabulary, {"random": questions, "popular": others})


def said(descriptions, answers):
    """An evaluation with these descriptions, one an image, and the same answer to all questions about an image."""
    made = benchmark()
    prompts = {(question.image, question.prompt) for questions in made.questions.values() for question in questions}
    rows = [(image, PROTOCOL.prompt, "describe", text) for image, text in descriptions.items()]
    rows += [(image, prompt, "exists", answers[image]) for image, prompt in prompts]
    responses = [
        Response(f"{image}/{prompt}", image, prompt, kind, "clean", text, True, 9) for image, prompt, kind, text in rows
    ]
    return Evaluation(made, PROTOCOL, responses)
