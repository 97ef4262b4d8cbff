"""Capability: accuracy on kinds of questions not trained on.

Shows whether a training cost other abilities. The tiny LLaVA learned to answer these questions in pretraining: what colour
something is, and how many objects there are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.records import Record
from mlx_visalign.evaluation.bootstrap import Counts, Sums, ratio

SKILLS = ("colour", "count", "count_colour")


@dataclass(frozen=True)
class Exercise(Record):
    """A question about an image with its correct answer.

    `kind` is one of `SKILLS`.
    """

    id: str
    image: str
    prompt: str
    answer: str
    kind: str


def is_right(said: str, answer: str) -> bool:
    """Whether two answers match, ignoring case and punctuation."""
    return _words(said) == _words(answer)


def count(exercises: Sequence[Exercise], answers: Mapping[str, str]) -> Counts:
    """Count exercises and correct answers per image and kind.

    `answers` are by the exercise's id.
    """
    columns = [f"{what} {kind}" for kind in SKILLS for what in ("asked", "right")]
    rows = {exercise.image: dict.fromkeys(columns, 0) for exercise in exercises}
    for exercise in exercises:
        row = rows[exercise.image]
        row[f"asked {exercise.kind}"] += 1
        row[f"right {exercise.kind}"] += is_right(answers[exercise.id], exercise.answer)
    return Counts(tuple(rows), {name: np.array([row[name] for row in rows.values()], dtype=int) for name in columns})


def metrics(sums: Sums) -> dict[str, Float[np.ndarray, "d"]]:
    """Share of correct answers, in total and by kind.

    `accuracy` is over all exercises. A share is 0 if there are no exercises.
    """
    asked, right = (np.sum([sums[f"{what} {kind}"] for kind in SKILLS], axis=0) for what in ("asked", "right"))
    return {"accuracy": ratio(right, asked)} | {kind: ratio(sums[f"right {kind}"], sums[f"asked {kind}"]) for kind in SKILLS}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
