"""Figures of a judge's parts, against numbers by hand."""

import json

import numpy as np
import pytest
from judged_images import images, judged, sighted

from mlx_visalign.evaluation.judge_figures import JudgeFigures, LabelCounts, dots, judge_figures
from mlx_visalign.scorers.trust import trust

SEEN = {"consistency": (0.5, 0.1, 0.0)}


def clip(own, swapped=0.0, blank=0.0):
    return SEEN | {"clip": (own, swapped, blank)}


# Two images with labels, one without. Standardising changes no order, so figures of single parts can be told by hand.
ROWS = [
    judged(0, ("cat", 0.0, clip(5, 1, 6)), ("dog", 0.5, clip(3, 1, 2)), ("cup", 0.9, clip(4, 9, 2)), ("car", None, clip(9))),
    judged(1, ("cat", 0.0, clip(2, 2, 1)), ("bus", 0.4, clip(3, 1, 1))),
    judged(2, ("dog", 0.2, clip(7, 1, 1))),
]
TRUTH = {"0.png": {"cat", "dog"}, "1.png": {"cat"}}


def figures(rows=ROWS, truth=TRUTH):
    return judge_figures(rows, trust(rows, "clip", "consistency"), truth)


def test_one_parts_figures():
    found = figures()
    part = next(part for part in found.parts if part.part == "clip")
    assert part.sees.value == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 1) / 6)
    assert part.sees_blank == pytest.approx(5 / 6)
    assert part.auc == pytest.approx(np.mean([5 > 4, 5 > 3, 3 > 4, 0.5, 2 > 4, 2 > 3]))  # true 5, 3, 2; false 4, 3
    assert part.pair_accuracy == pytest.approx((1 + 0 + 0) / 3)  # cat over cup, dog over cup, cat over bus
    assert found.labels == LabelCounts(3, 2, 3)
    assert part.agreement == {"consistency": 0.0}  # which is the same for all
    assert part.sees.low <= part.sees.value <= part.sees.high


def test_the_combined_judge_is_compared_with_what_it_does_not_contain():
    found = figures()
    assert [part.part for part in found.parts] == ["clip", "consistency", "combined"]
    by_name = {part.part: part for part in found.parts}
    assert by_name["combined"].agreement == {} and by_name["clip"].agreement.keys() == {"consistency"}
    assert by_name["combined"].auc == by_name["clip"].auc  # consistency adds nothing here


def test_combined_scores_are_means_of_standardised_ones():
    rows, truth = images(200, sighted)
    by_name = {part.part: part for part in figures(rows, truth).parts}
    assert by_name["combined"].auc > max(by_name["clip"].auc, by_name["consistency"].auc)
    assert by_name["combined"].sees.value > by_name["clip"].sees.value


@pytest.mark.parametrize("truth", [{}, {"0.png": {"cat", "dog", "cup"}}])
def test_without_both_kinds_there_is_no_auc(truth):
    found = figures(truth=truth)
    assert {part.auc for part in found.parts} == {part.pair_accuracy for part in found.parts} == {None}
    assert found.labels == (LabelCounts(3, 0, 0) if truth else None)


def test_nothing_named_has_no_parts_and_is_json():
    found = figures([judged(0)], {})
    assert found.parts == () and found.labels is None
    json.dumps(found.to_row(), allow_nan=False)
    assert JudgeFigures.from_row(json.loads(json.dumps(figures().to_row()))) == figures()


def test_dots_are_the_greedy_mentions_of_the_judge():
    found = dots(ROWS, trust(ROWS, "clip", "consistency"), TRUTH)
    assert [dot.place for dot in found] == [0.0, 0.5, 0.9, 0.0, 0.4, 0.2]
    assert [dot.correct for dot in found] == [True, True, False, True, False, None]
    scores = [5, 3, 4, 9, 2, 3, 7]  # sampled answers' objects count in the scale
    assert [dot.score for dot in found] == pytest.approx([(s - np.mean(scores)) / np.std(scores) for s in (5, 3, 4, 2, 3, 7)])
    assert dots([judged(0)], trust([judged(0)], "clip", "consistency"), {}) == []
