"""Scales and weights of a judge's parts, found without labels.

Let every part's standardised score be l_i t plus an error of its own, t being whether the object is there. Then the
correlation of two parts is r_ij = l_i l_j, so that three parts tell how much each of them knows:

    l_i^2 = r_ij r_ik / r_jk                        (Spearman 1904)
    w_i   proportional to l_i / (1 - l_i^2)         (the best weights for t: Bartlett 1937)

Errors that two parts share count as truth. Consistency and the model's own yes or no come from the same model, so they share
some: no weight of `combined` falls below `LEAST_WEIGHT`.
"""

from collections.abc import Sequence

import numpy as np

from mlx_visalign.scorers.trust import FEW_IMAGES, JudgedImage, correlation

COMBINED = ("clip", "consistency")
"""The parts of the judge `combined`."""
WITNESS = "self_check"
"""The third part, which tells how much the two know."""
LEAST_WEIGHT = 0.2
LEAST_CORRELATION, MOST_KNOWN = 1e-3, 0.95  # keep l^2 between 0 and 1 where correlations are by chance negative or too high


def scale_of(rows: Sequence[JudgedImage], part: str) -> tuple[float, float]:
    """Mean and standard deviation of a part's scores.

    Of all objects that greedy and sampled answers name; (0, 1) where all scores are the same, or there are none.
    """
    scores = [one.own[part] for row in rows for one in row.objects]
    spread = float(np.std(scores)) if scores else 0.0
    return (float(np.mean(scores)), spread) if spread > 0 else (0.0, 1.0)


def weights_of(rows: Sequence[JudgedImage]) -> dict[str, float]:
    """Weights of the two parts of `combined`, summing to 1.

    Equal where there are too few images to tell, or no third part.
    """
    if len(rows) < FEW_IMAGES:
        return dict.fromkeys(COMBINED, 0.5)
    scores = {part: np.array([one.own.get(part, 0.0) for row in rows for one in row.objects]) for part in (*COMBINED, WITNESS)}
    both, *with_witness = (
        max(correlation(scores[one], scores[other]), LEAST_CORRELATION)
        for one, other in (COMBINED, (COMBINED[0], WITNESS), (COMBINED[1], WITNESS))
    )
    known = [min(both * own / other, MOST_KNOWN) for own, other in (with_witness, reversed(with_witness))]
    first, second = (share**0.5 / (1 - share) for share in known)
    weight = min(max(first / (first + second), LEAST_WEIGHT), 1 - LEAST_WEIGHT)
    return {COMBINED[0]: weight, COMBINED[1]: 1 - weight}
