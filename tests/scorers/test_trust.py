"""Trust in a judge: its statistics against numbers by hand and against regression, and what each kind of judge is told."""

import numpy as np
import pytest
from judged_images import blind, guessing, images, judged, placed, sighted

from mlx_visalign.scorers import trust as module
from mlx_visalign.scorers.trust import (
    Trust,
    correlation,
    partial_correlation,
    ranks,
    require_scores,
    separation,
    trust,
    wins,
    with_interval,
)
from mlx_visalign.utils.errors import UserError


def array(*numbers):
    return np.array(numbers, dtype=float)


# -- statistics -------------------------------------------------------------------------------------------------------


def test_ranks_of_ties_are_their_mean():
    assert ranks(array(30, 10, 20, 20)).tolist() == [4, 1, 2.5, 2.5]
    assert ranks(array()).tolist() == []


def test_a_rank_correlation_by_hand():
    """Spearman: 1 - 6 (sum of squared differences of ranks) / (n (n^2 - 1)) without ties."""
    one, other = array(1, 2, 3, 4, 5), array(2, 1, 4, 3, 5)
    assert correlation(ranks(one), ranks(other)) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert correlation(one, array(7, 7, 7, 7, 7)) == correlation(array(1), array(2)) == correlation(array(), array()) == 0


def test_a_partial_correlation_by_hand():
    """Ranks 1 2 3 4, 1 3 2 4 and 2 1 4 3: r_xy = .8, r_xz = .6, r_yz = 0."""
    one, other, held = array(1, 2, 3, 4), array(1, 3, 2, 4), array(2, 1, 4, 3)
    assert partial_correlation(one, other, held) == pytest.approx(0.8 / np.sqrt(1 - 0.36))


@pytest.mark.parametrize("seed", range(20))
def test_a_partial_correlation_is_that_of_the_residuals(seed):
    """What is left of both ranks after a straight line through those of the third."""
    rng = np.random.default_rng(seed)
    held = rng.integers(0, 12, 60).astype(float)
    one, other = (rng.normal(size=60) + slope * held + rng.integers(0, 3, 60) for slope in rng.normal(size=2))
    x, y, z = map(ranks, (one, other, held))
    left = [part - np.polyval(np.polyfit(z, part, 1), z) for part in (x, y)]
    assert partial_correlation(one, other, held) == pytest.approx(np.corrcoef(*left)[0, 1])


def test_what_the_place_explains_alone_is_no_agreement():
    place = np.arange(20.0)
    assert partial_correlation(-place, -place, place) == 0
    assert partial_correlation(place, np.ones(20), place) == 0


def test_wins_count_ties_half():
    assert wins(array(2, 1, 0, 5), array(1, 1, 1, 5)) == (1 + 0.5 + 0 + 0.5) / 4
    assert wins(array(), array()) == 0.5


def test_separation_counts_pairs():
    rng = np.random.default_rng(0)
    correct, hallucinated = rng.integers(0, 9, 30) + 1.0, rng.integers(0, 9, 20) + 0.0
    pairs = [(c > h) + 0.5 * (c == h) for c in correct for h in hallucinated]
    assert separation(correct, hallucinated) == pytest.approx(np.mean(pairs))


def test_an_interval_is_over_images_and_the_same_every_time():
    """Of 400 images with one mention each it is that of a share; of as many mentions in 20 alike images it is wider."""
    hits = np.random.default_rng(0).random(400) < 0.7
    single = [np.array([[float(hit), 0.5]]) for hit in hits]
    value, low, high = with_interval(single, lambda t: wins(t[:, 0], t[:, 1]))
    error = 1.96 * np.sqrt(value * (1 - value) / 400)
    assert (value, low, high) == pytest.approx((hits.mean(), value - error, value + error), abs=0.01)
    assert (value, low, high) == with_interval(single, lambda t: wins(t[:, 0], t[:, 1]))
    alike = [np.repeat(table, 20, axis=0) for table in single[:20]]
    _, low_alike, high_alike = with_interval(alike, lambda t: wins(t[:, 0], t[:, 1]))
    assert high_alike - low_alike > 3 * (high - low)


def test_without_tables_the_interval_is_the_value():
    assert with_interval([], lambda t: wins(t[:, 0], t[:, 1])) == (0.5, 0.5, 0.5)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def verdict(score, count=150, **named):
    return trust(images(count, score, **named)[0], "clip", "consistency")


def test_a_good_judge_is_trusted():
    found = verdict(sighted)
    assert found.verdict == "trust" and (found.images, found.mentions) == (150, 600)
    assert found.sees_low < found.sees and found.sees > 0.75 and abs(found.sees - found.sees_blank) < 0.05
    assert 0 < found.agreement_low < found.agreement < 0.8 and found.position < 0
    assert found.in_words.startswith("Trust this judge: CLIP tells") and "600 mentions in 150 images" in found.in_words
    assert "-" not in found.in_words and "\N{MINUS SIGN}" in found.in_words and found.advice == "CSR and FiSAO can train on it."


def test_a_judge_that_scores_all_images_alike_is_stopped():
    found = verdict(blind)
    assert (found.verdict, found.sees, found.sees_blank, found.agreement) == ("stop", 0.5, 0.5, 0)
    assert "hardly tells an object's own image from another" in found.in_words and "SeVa" in found.advice


def test_a_judge_that_knows_only_the_place_is_stopped():
    """Though it tells its own image from others, and agrees perfectly with another such judge."""
    found = verdict(placed)
    assert (found.verdict, found.sees) == ("stop", 1) and found.position < -0.9
    rows, _ = images(150, placed)
    tables = [[(one.own["clip"], one.own["consistency"]) for one in row.objects] for row in rows]
    assert correlation(*np.array(tables).reshape(-1, 2).T) > 0.99


def test_judges_that_do_not_agree_are_stopped_or_doubted():
    found = [verdict(guessing, seed=seed) for seed in range(8)]
    assert {one.verdict for one in found} <= {"stop", "doubt"} and {one.sees for one in found} == {1.0}
    stopped = [one for one in found if one.verdict == "stop"]
    assert stopped and all("do not agree on what is there" in one.in_words for one in stopped)
    doubted = [one for one in found if one.verdict == "doubt"]
    assert doubted and all("by chance" in one.in_words and one.agreement_low < 0 for one in doubted)


def test_few_images_are_never_trusted():
    found = verdict(sighted, module.FEW_IMAGES - 1, mentions=8)
    assert found.verdict == "doubt" and found.agreement_low > 0 and found.sees_low > module.LEAST_SEEN
    assert "and 19 images are few" in found.in_words
    assert verdict(sighted, module.FEW_IMAGES, mentions=8).verdict == "trust"


@pytest.mark.parametrize("rows", [[], [judged(0)], [judged(0, ("a", None, {"clip": (1, 1, 1), "consistency": (1, 1, 1)}))]])
def test_a_model_that_names_nothing_has_no_judge(rows):
    """And what is written down are numbers."""
    found = trust(rows, "clip", "consistency")
    assert found.verdict == "stop" and found.mentions == 0 and "names no object of the vocabulary" in found.in_words
    assert "--vocabulary" in found.advice and Trust.from_row(found.to_row()) == found
    assert np.isfinite([found.sees_low, found.agreement_low]).all()


def test_a_verdict_is_the_same_every_time_and_needs_no_order_of_images():
    rows, _ = images(60, sighted)
    assert trust(rows, "clip", "consistency") == trust(rows, "clip", "consistency")
    shuffled, found = trust(rows[::-1], "clip", "consistency"), trust(rows, "clip", "consistency")
    assert (shuffled.sees, shuffled.agreement) == pytest.approx((found.sees, found.agreement))


def test_a_scorer_of_ones_own_is_called_so():
    found = trust(images(60, sighted)[0], "clip", "consistency", own_scorer=True)
    assert "your scorer tells" in found.in_words and "CLIP" not in found.in_words


def test_damaged_rows_are_refused_with_their_line():
    whole = {"clip": (1, 1, 1), "consistency": (1, 1, 1)}
    rows = [judged(0, ("a", 0.1, whole), ("b", None, whole)), judged(1, ("a", None, {"clip": (1, 1, 1)}))]
    require_scores(rows[:1], {"clip", "consistency"}, "judge.jsonl")
    with pytest.raises(UserError, match=r"judge\.jsonl:2: expected scores by clip, consistency for every object"):
        require_scores(rows, {"clip", "consistency"}, "judge.jsonl")
