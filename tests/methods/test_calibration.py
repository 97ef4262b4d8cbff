"""Calibration: rewards as the spec has them, what separates scores, and the reasons to stop."""

import numpy as np
import pytest

from mlx_visalign.methods.fisao.calibration import Calibration, Scored, believed, calibrate
from mlx_visalign.utils.errors import UserError

FOUND = Calibration("given", 0.235, 0.195, 0.02, 0.02, 60, 60, 0.9)


@pytest.mark.parametrize(
    ("score", "band", "affine"),
    [
        (0.150, -1, -1),
        (0.185, -0.25, -1),
        (0.1899, -0.1275, -1),
        (0.1901, 0, -1),
        (0.200, 0, -0.75),
        (0.215, 0, 0),
        (0.239, 0, 1),
        (0.2401, 0.1275, 1),
        (0.255, 0.5, 1),
        (0.300, 1, 1),
    ],
)
def test_scores_as_rewards(score, band, affine):
    assert FOUND.reward(score, "band", margin=0.005) == pytest.approx(band)
    assert FOUND.reward(score, "affine", margin=0.005) == pytest.approx(affine)


def test_without_a_margin_the_means_are_the_thresholds():
    assert [FOUND.reward(score, "band", 0.0) for score in (0.1951, 0.2349)] == [0, 0]
    assert FOUND.reward(0.237, "band", 0.0) == pytest.approx(0.05) == -FOUND.reward(0.193, "band", 0.0)


def rows(correct, hallucinated, unknown=()):
    sides = ((True, correct), (False, hallucinated), (None, unknown))
    return [Scored("a", "a.png", "cat", score, side) for side, scores in sides for score in scores]


def test_what_is_not_known_does_not_count():
    found = calibrate(rows([3, 4, 5], [1, 2, 4], [90, -90]), "given", least=3)
    assert (found.correct_mean, found.hallucinated_mean, found.correct, found.hallucinated) == (4, pytest.approx(7 / 3), 3, 3)
    assert (found.correct_std, found.auc) == (1, pytest.approx(7.5 / 9))
    assert "PSEUDO" not in found.in_words and "by the given labels" in found.in_words


def test_pseudo_labels_are_called_so():
    assert "PSEUDO" in calibrate(rows([3, 4, 5], [1, 2]), "pseudo", least=2).in_words


@pytest.mark.parametrize("probability", [0.999, 0.71, 0.69, 0.5, 0.31, 0.29, 0.001])
def test_log_odds_of_yes_as_pseudo_labels(probability):
    """Sure from a probability of 0.7 on, either way."""
    known = True if probability > 0.7 else False if probability < 0.3 else None
    assert believed(float(np.log(probability / (1 - probability)))) is known


@pytest.mark.parametrize(
    ("correct", "hallucinated", "why"),
    [
        ([1.0] * 60, [0.0] * 49, "Calibration needs 50 .* and found 60 and 49"),
        ([0.0] * 60, [1.0] * 60, "AUC of 0.00"),
        (list(range(60)), list(range(-5, 55)), r"AUC of 0.58 .*needed: 0.60"),
        # Higher in the mean through a few, but below in most pairs.
        ([0.0] * 55 + [1e6] * 5, [1.0] * 60, "AUC of 0.08"),
    ],
)
def test_a_scorer_that_knows_nothing_stops_the_run(correct, hallucinated, why):
    with pytest.raises(UserError, match=why):
        calibrate(rows(correct, hallucinated), "given", least=50)
