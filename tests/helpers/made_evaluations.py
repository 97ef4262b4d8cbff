"""Three images, what is in them, questions about them, and evaluations with answers made up for a test."""

import numpy as np
from PIL import Image

from mlx_visalign.data.object_vocabulary import Entry, Vocabulary
from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.pope import Question
from mlx_visalign.evaluation.runner import Evaluation, Protocol
from mlx_visalign.reporting.summary import make_report

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


BEFORE = said({"a": "A cat and a dog.", "b": "A cat.", "c": "A cup."}, {"a": "Yes.", "b": "No."})
AFTER = said({"a": "A cat.", "b": "A cat.", "c": "Nothing."}, {"a": "No.", "b": "Yes."})
TRAINING = [
    {"iteration": step + 1, "train_loss": 1.0 - step / 40, "accuracy": 0.5, "iterations_per_second": 2.0} for step in range(40)
]
PAIRS = {"pairs": 20, "accuracy": 0.75, "margin": 0.4}


def report(before=BEFORE, after=AFTER, pairs=PAIRS):
    about = {"training": TRAINING, "held_out_pairs": pairs, "versions": {"mlx": "1"}, "settings": {"method": "seva"}}
    return make_report(before, after, **about)
