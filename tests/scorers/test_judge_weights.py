"""Weights of a judge's parts: found without labels, near the best that labels would find."""

import numpy as np
import pytest
from judged_images import images, judged

from mlx_visalign.scorers.trust import LEAST_WEIGHT, scale_of, separation, weights_of

PARTS = ("clip", "consistency", "self_check")


def knowing(*signals):
    """Three parts that see what is there as clearly as told, each with errors of its own."""

    def score(place, true, rng):
        return {part: (signal * true + rng.normal(), 0, 0) for part, signal in zip(PARTS, signals, strict=True)}

    return score


def table(rows, truth):
    """Every part's standardised scores, and what is true."""
    named = [(row.image, one) for row in rows for one in row.objects]
    scores = np.array([[one.own[part] for part in PARTS] for _, one in named])
    return (scores - scores.mean(axis=0)) / scores.std(axis=0), np.array([one.object in truth[image] for image, one in named])


def auc(scores, right):
    return separation(scores[right], scores[~right])


def test_a_scale_is_of_all_objects():
    """Those that only sampled answers name too; a part without spread is left as it is."""
    two = {"clip": (1, 0, 0), "consistency": (5, 0, 0)}
    rows = [
        judged(0, ("a", 0.1, two), ("b", None, two | {"clip": (3, 0, 0)})),
        judged(1, ("c", None, two | {"clip": (5, 0, 0)})),
    ]
    assert scale_of(rows, "clip") == (3, pytest.approx(np.std([1, 3, 5])))
    assert scale_of(rows, "consistency") == scale_of([], "clip") == (0, 1)


@pytest.mark.parametrize("signals", [(0.8, 2.0, 1.5), (2.0, 0.8, 1.5), (1.2, 1.5, 2.5), (1.5, 1.5, 0.7)])
def test_weights_are_near_the_best_ones_without_labels(signals):
    rows, truth = images(400, knowing(*signals))
    scores, right = table(rows, truth)
    weights = weights_of(rows)
    assert sum(weights.values()) == pytest.approx(1)
    combined = auc(scores[:, :2] @ [weights["clip"], weights["consistency"]], right)
    best = max(auc(scores[:, :2] @ [share, 1 - share], right) for share in np.linspace(0, 1, 101))
    assert combined > best - 0.005
    if abs(signals[0] - signals[1]) > 1:
        assert combined > auc(scores[:, 0] + scores[:, 1], right) + 0.005
        assert (weights["clip"] > 0.6) == (signals[0] > signals[1])


@pytest.mark.parametrize("signals, expected", [((0.0, 2.0, 1.5), LEAST_WEIGHT), ((2.0, 0.0, 1.5), 1 - LEAST_WEIGHT)])
def test_no_weight_is_taken_away_whole(signals, expected):
    """A part that knows nothing keeps some weight: two parts that agree in their errors would leave it as little."""
    assert weights_of(images(400, knowing(*signals))[0])["clip"] == pytest.approx(expected)


def test_weights_are_equal_where_nothing_tells_them_apart():
    few = images(19, knowing(0.8, 2.0, 1.5))[0]
    no_witness = images(200, lambda *some: {part: knowing(0.8, 2.0, 1.5)(*some)[part] for part in PARTS[:2]})[0]
    constant = images(200, lambda *_: dict.fromkeys(PARTS, (1, 0, 0)))[0]
    for rows in (few, no_witness, constant, [judged(n) for n in range(30)], []):
        assert weights_of(rows) == pytest.approx({"clip": 0.5, "consistency": 0.5})
