"""Calibration of a scorer: its scores of objects that are there against those of objects that are made up.

From mentions in a model's own descriptions, each scored and known (or believed) to be right or wrong, come the two means
that a reward is measured against. The scorer must tell the two apart, or it has nothing to teach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.records import Record
from mlx_visalign.evaluation.object_labels import Annotations, listed_labels
from mlx_visalign.runs.worlds import find_world
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.formatting import with_minus

LEAST_AUC = 0.60  # below it a scorer tells right from wrong hardly better than a coin


@dataclass(frozen=True)
class Scored(Record):
    """An object named in a description of `image`, with its score. `correct`: whether it is there; None: not known."""

    id: str
    image: str
    canonical: str
    phrase: str
    score: float
    correct: bool | None


@dataclass(frozen=True)
class Calibration(Record):
    """Scores of correct and of hallucinated mentions: their means, standard deviations and counts.

    auc     probability that a correct mention scores higher than a hallucinated one; ties count half
    labels  "given": somebody knew what is in the images; "pseudo": the model's own yes and no stood for it
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
        pseudo = "PSEUDO-labels, the model's own yes and no, not by the truth"
        labels = "the labels that were given" if self.labels == "given" else pseudo
        correct, hallucinated = (with_minus(f"{mean:.4g}") for mean in (self.correct_mean, self.hallucinated_mean))
        return (
            f"The scorer gives {self.correct} correct mentions {correct} in the mean and {self.hallucinated} "
            f"hallucinated ones {hallucinated} (AUC {self.auc:.3f}, a coin: 0.5; by {labels})."
        )

    def reward(self, score: float, shape: Literal["band", "affine"], margin: float) -> float:
        """A score as a reward in [-1, 1], with c and h the two means and d = c - h.

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
    """The objects in those of the images that `source` knows: a world by its name, or a list (see `object_labels`).

    Raises `UserError` for a file that is no such list, an object that the vocabulary does not know, or a source that
    knows none of the images.
    """
    world = find_world(source)
    known = listed_labels(Path(source), images, vocabulary) if world is None else world.labels(images)
    if not known:
        raise UserError(listed(f"labels: {source} says of none of the {len(images)} images what is in it", images))
    return known


def calibrate(rows: Sequence[Scored], labels: Literal["given", "pseudo"], least: int) -> Calibration:
    """The calibration of these mentions.

    Raises `UserError`, saying why, where there are fewer than `least` of a side or the scorer tells them apart hardly or
    the wrong way round.
    """
    correct, hallucinated = (
        np.array([row.score for row in rows if row.correct is side], dtype=float) for side in (True, False)
    )
    if min(len(correct), len(hallucinated)) < least:
        raise UserError(
            f"Calibration found {len(correct)} correct and {len(hallucinated)} hallucinated mentions, and needs {least} of "
            "each. Give it more images (--max-images, calibration_images) or labels, or lower min_mentions."
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
            f"This scorer cannot tell what is there from what is made up: correct mentions score {found.correct_mean:.4f} in "
            f"the mean, hallucinated ones {found.hallucinated_mean:.4f}, and it ranks them with an AUC of {found.auc:.2f} "
            f"(a coin: 0.50; needed: {LEAST_AUC:.2f}). Try another phrase, word debiasing (debias_images), or another scorer."
        )
    return found


def separation(correct: Float[np.ndarray, "c"], hallucinated: Float[np.ndarray, "h"]) -> float:
    """The probability that a correct mention scores higher than a hallucinated one, a tie counting half (the AUC)."""
    below, up_to = (np.searchsorted(np.sort(hallucinated), correct, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(hallucinated))


def believed(yes: float) -> bool | None:
    """A pseudo-label from the model's own probability of a yes: there above 0.7, not there below 0.3, else not known."""
    if 0.3 <= yes <= 0.7:
        return None
    return yes > 0.5
