"""Calibrates an object scorer on correct and hallucinated mentions.

Mentions in the model's own descriptions are scored and labelled right or wrong (or pseudo-labelled). Their two mean scores
are the baseline of rewards. The scorer must separate the two kinds, or its rewards would teach nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.records import Record
from mlx_visalign.evaluation.object_labels import Annotations, listed_labels
from mlx_visalign.runs.worlds import find_world
from mlx_visalign.scorers.trust import separation
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.formatting import with_minus

LEAST_AUC = 0.60  # below this, a scorer is hardly better than chance


@dataclass(frozen=True)
class Scored(Record):
    """An object named in a description, with its score.

    `correct`: whether it is in the image; None: unknown.
    """

    id: str
    image: str
    object: str
    score: float
    correct: bool | None


@dataclass(frozen=True)
class Calibration(Record):
    """Statistics of correct and of hallucinated mentions' scores.

    Means, standard deviations and counts.

    auc     probability that a correct mention scores higher than a hallucinated one; ties count half
    labels  "given": from labels of the images; "pseudo": from the model's own yes and no
    """

    labels: Literal["given", "pseudo"]
    correct_mean: float
    hallucinated_mean: float
    correct_std: float
    hallucinated_std: float
    correct: int
    hallucinated: int
    auc: float

    @property
    def in_words(self) -> str:
        pseudo = "PSEUDO-labels: the model's own yes and no, not ground truth"
        labels = "the given labels" if self.labels == "given" else pseudo
        correct, hallucinated = (with_minus(f"{mean:.4g}") for mean in (self.correct_mean, self.hallucinated_mean))
        return (
            f"Mean score of {self.correct} correct mentions: {correct}; of {self.hallucinated} hallucinated ones: "
            f"{hallucinated}. AUC {self.auc:.3f} (chance: 0.5), by {labels}."
        )

    def reward(self, score: float, shape: Literal["band", "affine"], margin: float) -> float:
        """A score as a reward in [-1, 1].

        With c and h the mean scores of correct and hallucinated mentions, and d = c - h:

        band    min(1, (s - c) / d) from c + margin up; max(-1, (s - h) / d) from h - margin down; 0 between
        affine  2 (s - (c + h) / 2) / d, clipped
        """
        c, h = self.correct_mean, self.hallucinated_mean
        if shape == "affine":
            return float(np.clip(2 * (score - (c + h) / 2) / (c - h), -1, 1))
        if score >= c + margin:
            return min(1.0, (score - c) / (c - h))
        return max(-1.0, (score - h) / (c - h)) if score <= h - margin else 0.0


def read_labels(source: str, images: Sequence[str], vocabulary: Vocabulary) -> Annotations:
    """The objects in those images that `source` has labels for.

    `source` is a world's name, or a list (see `object_labels`). Raises `UserError` for a file that is no such list, an
    object that is not in the vocabulary, or a source without labels of any of the images.
    """
    world = find_world(source)
    known = listed_labels(Path(source), images, vocabulary) if world is None else world.labels(images)
    if not known:
        raise UserError(listed(f"labels: {source} has no labels for any of these images", images))
    return known


def calibrate(rows: Sequence[Scored], labels: Literal["given", "pseudo"], least: int) -> Calibration:
    """The calibration of these mentions.

    Raises `UserError` where there are fewer than `least` mentions of a kind, or the scorer does not separate the two kinds
    (AUC below 0.6, or means in the wrong order).
    """
    correct, hallucinated = (
        np.array([row.score for row in rows if row.correct is side], dtype=float) for side in (True, False)
    )
    if min(len(correct), len(hallucinated)) < least:
        raise UserError(
            f"Calibration needs {least} correct and {least} hallucinated mentions, and found {len(correct)} and "
            f"{len(hallucinated)}. Use more images (--max-images, judge.check_images), give labels, or lower min_mentions."
        )
    found = Calibration(
        labels=labels,
        correct_mean=float(correct.mean()),
        hallucinated_mean=float(hallucinated.mean()),
        correct_std=float(correct.std(ddof=1)),
        hallucinated_std=float(hallucinated.std(ddof=1)),
        correct=len(correct),
        hallucinated=len(hallucinated),
        auc=separation(correct, hallucinated),
    )
    if found.correct_mean <= found.hallucinated_mean or found.auc < LEAST_AUC:
        raise UserError(
            "This scorer does not separate correct from hallucinated mentions: their mean scores are "
            f"{found.correct_mean:.4f} and {found.hallucinated_mean:.4f}, with an AUC of {found.auc:.2f} (chance: 0.50; "
            f"needed: {LEAST_AUC:.2f}). Try another judge.phrase, word debiasing (judge.debias_images), or another CLIP."
        )
    return found


def believed(yes: float) -> bool | None:
    """A pseudo-label from the model's log-odds of "yes".

    Above 0.7 in probability the object is there, below 0.3 it is not, in between it is unknown.
    """
    return None if abs(yes) <= math.log(7 / 3) else yes > 0
