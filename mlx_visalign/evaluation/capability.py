"""Capability: questions of kinds that no training asks, with a short right answer each. Did learning one thing cost others?

The tiny LLaVA learned to answer them when it was pretrained: what colour something is, and how many there are.
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
    """A question about an image and its right answer. kind: which of `SKILLS` it takes."""

    id: str
    image: str
    prompt: str
    answer: str
    kind: str


def is_right(said: str, answer: str) -> bool:
    """Whether two answers have the same words; case and punctuation make no difference."""
    return _words(said) == _words(answer)


def count(exercises: Sequence[Exercise], answers: Mapping[str, str]) -> Counts:
    """Exercises and right answers for each image and kind, counted for `metrics`. Answers are found by the exercise's id."""
    columns = [f"{what} {kind}" for kind in SKILLS for what in ("asked", "right")]
    rows = {exercise.image: dict.fromkeys(columns, 0) for exercise in exercises}
    for exercise in exercises:
        row = rows[exercise.image]
        row[f"asked {exercise.kind}"] += 1
        row[f"right {exercise.kind}"] += is_right(answers[exercise.id], exercise.answer)
    return Counts(tuple(rows), {name: np.array([row[name] for row in rows.values()], dtype=int) for name in columns})


def metrics(sums: Sums) -> dict[str, Float[np.ndarray, "d"]]:
    """The share of right answers, over all exercises (`accuracy`) and over those of each kind; 0 where none was asked."""
    asked, right = (np.sum([sums[f"{what} {kind}"] for kind in SKILLS], axis=0) for what in ("asked", "right"))
    return {"accuracy": ratio(right, asked)} | {kind: ratio(sums[f"right {kind}"], sums[f"asked {kind}"]) for kind in SKILLS}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
