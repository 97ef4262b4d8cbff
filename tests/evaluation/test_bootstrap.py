import numpy as np
import pytest

from mlx_visalign.evaluation.bootstrap import Counts, differences, intervals, mean_differences, mean_intervals, ratio
from mlx_visalign.utils.errors import UserError


def counts(right, images=None):
    columns = {"right": np.array(right), "all": np.ones(len(right), dtype=int)}
    return Counts(tuple(images or map(str, range(len(right)))), columns)


def share(sums):
    return {"share": ratio(sums["right"], sums["all"])}


def test_the_interval_of_a_share_is_the_binomial_one():
    n, p = 400, 0.3
    found = intervals(counts([1] * 120 + [0] * 280), share, seed=1, draws=20_000)["share"]
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert found.value == pytest.approx(p)
    assert (found.low, found.high) == pytest.approx((p - half, p + half), abs=0.005)
    narrow = intervals(counts([1] * 120 + [0] * 280), share, seed=1, draws=20_000, level=0.5)["share"]
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * np.sqrt(p * (1 - p) / n), abs=0.005)


def test_the_seed_decides_the_draws():
    data = counts([1, 0, 0, 1, 0, 1, 1])
    assert intervals(data, share, seed=1) == intervals(data, share, seed=1)
    rng = np.random.default_rng(0)
    large = counts(rng.integers(0, 2, 301).tolist())
    assert intervals(large, share, seed=1, draws=101) != intervals(large, share, seed=2, draws=101)


def test_a_paired_difference_knows_that_hard_images_are_hard_for_both():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 500)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:20]] = 1  # 20 images better, none worse
    found = differences(counts(before), counts(after), share, seed=0)["share"]
    assert found.value == pytest.approx(20 / 500)
    assert found.low > 0.02 and found.high < 0.06  # unpaired, the interval would reach below zero


def test_a_mean_over_trainings_is_of_the_same_draws():
    rng = np.random.default_rng(0)
    before, *after = (counts(rng.integers(0, 2, 200)) for _ in range(4))
    alone = [differences(before, one, share, seed=0)["share"] for one in after]
    found = mean_differences(before, after, share, seed=0)["share"]
    assert found.value == pytest.approx(np.mean([one.value for one in alone]))
    assert found.high - found.low < np.mean([one.high - one.low for one in alone])  # three trainings' chance errors cancel
    several = mean_intervals(after, share, seed=0)["share"]
    assert several.value == pytest.approx(np.mean([intervals(one, share, seed=0)["share"].value for one in after]))
    assert mean_intervals([before], share, seed=0) == intervals(before, share, seed=0)


def test_two_systems_must_have_seen_the_same_images():
    with pytest.raises(UserError, match="the same images"):
        differences(counts([1, 0], "ab"), counts([1, 0], "ac"), share, seed=0)


def test_a_ratio_with_nothing_below_is_zero():
    assert ratio(np.array([1.0, 3.0]), np.array([0.0, 2.0])).tolist() == [0, 1.5]
