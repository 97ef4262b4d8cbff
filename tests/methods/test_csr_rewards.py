"""Sentence rewards: the spec's trees in rank and paper mode, centred ranks, what is pruned, what is broken."""

import math
from pathlib import Path
from statistics import fmean, median, pstdev

import numpy as np
import pytest
from made_judges import made_judge

from mlx_visalign.methods.csr import Settings, with_spread
from mlx_visalign.methods.csr.rewards import (
    RewardSettings,
    Sentence,
    Tree,
    answer_reward,
    centred_ranks,
    is_broken,
    language_score,
    ranks,
    sibling_rewards,
    survivors,
)
from mlx_visalign.utils.errors import UserError

# The spec's tree: siblings with (language, CLIP); d is a dead end that counts as a sibling.
FAMILIES = {
    "": {"a": (-0.20, 24), "b": (-0.60, 28), "c": (-0.90, 20), "d": (-0.35, 26)},
    "a": {"a1": (-0.50, 30), "a2": (-0.40, 18)},
    "b": {"b1": (-0.90, 26), "b2": (-1.10, 29), "b3": (-1.50, 20)},
}
PATHS = {"b2": "b", "b1": "b", "a1": "a", "b3": "b", "c": "", "a2": "a"}
PROBABILITIES = {
    "a": [0.9, 0.8, 0.9],
    "a1": [0.6, 0.7],
    "a2": [0.8, 0.8],
    "b": [0.5, 0.6, 0.7],
    "b1": [0.7, 0.7],
    "b2": [0.5, 0.9],
    "b3": [0.4, 0.6],
    "c": [0.3, 0.5],
}


def rewards(settings, families):
    found = {}
    for family in families.values():
        language, image = zip(*family.values(), strict=True)
        found |= dict(zip(family, sibling_rewards([*family], language, image, settings), strict=True))
    return found


def totals(settings, families=FAMILIES):
    own = rewards(settings, families)
    return {leaf: answer_reward([own[node] for node in (first, leaf) if node], settings.over) for leaf, first in PATHS.items()}


def ends(values):
    return max(values, key=values.get), min(values, key=values.get)


def test_rank_rewards_are_the_specs_costs():
    found = totals(RewardSettings("rank", over="sum"))
    expected = {"b2": 0.666667, "b1": 0.933333, "a1": 1.25, "b3": 1.3, "c": 1.0, "a2": 1.65}
    assert found == pytest.approx({leaf: -cost for leaf, cost in expected.items()}, abs=1e-6)
    over_code = totals(RewardSettings("rank", over="code"))
    expected = {"b2": 0.222222, "b1": 0.311111, "a1": 0.416667, "b3": 0.433333, "c": 0.5, "a2": 0.55}
    assert over_code == pytest.approx({leaf: -cost for leaf, cost in expected.items()}, abs=1e-6)
    assert ends(over_code) == ("b2", "a2")


def test_rank_rewards_with_little_weight_on_the_image():
    found = totals(RewardSettings("rank", image_weight=0.1, over="code"))
    assert ends(found) == ("a2", "b3")
    assert (found["a2"], found["b3"]) == pytest.approx((-0.283333, -0.566667), abs=1e-6)


def paper(image_weight):
    families = {
        parent: {
            name: (language_score([math.log(p) for p in PROBABILITIES[name]], [], "product"), image)
            for name, (_, image) in family.items()
            if name in PROBABILITIES
        }
        for parent, family in FAMILIES.items()
    }
    return totals(RewardSettings("paper", image_weight, "product", "sum"), families)


def test_paper_rewards_are_the_specs():
    found = paper(0.9)
    expected = {"b2": 51.366, "a1": 48.7068, "b1": 48.67, "b3": 43.245, "a2": 37.9288, "c": 18.015}
    assert found == pytest.approx(expected, abs=1e-4) and ends(found) == ("b2", "c")
    found = paper(0.1)
    assert sorted(found, key=found.get, reverse=True)[:2] == ["a1", "b2"] and ends(found)[1] == "c"
    assert (found["a1"], found["b2"], found["c"]) == pytest.approx((6.3612, 6.294, 2.135), abs=1e-4)


def test_the_papers_image_score_is_never_negative():
    assert sibling_rewards(["A cat."], [0.0], [-27.2], RewardSettings("paper", 1.0)) == [0.0]


def test_calibrated_rewards_turn_negative_below_the_threshold():
    settings = RewardSettings("calibrated", 1.0, threshold=20.0, width=4.0)
    low, even, high = sibling_rewards(["A.", "B.", "C."], [0.0] * 3, [16.0, 20.0, 24.0], settings)
    assert even == 0 and high == -low == pytest.approx(2 / (1 + math.exp(-1)) - 1)


def test_equal_scores_rank_in_their_order_and_a_lone_child_is_worst():
    assert ranks([3.0, 5.0, 3.0]) == [2, 1, 3]
    assert sibling_rewards(["A cat."], [-0.1], [30.0], RewardSettings("rank")) == [-1.0]


def test_an_end_alone_fits_worst_and_counts_nothing():
    assert sibling_rewards(["", "A cat."], [-0.1, -0.2], [None, -5.0], RewardSettings("rank")) == pytest.approx([-0.95, -0.55])
    for kind in ("paper", "calibrated"):
        assert sibling_rewards([""], [-0.4], [None], RewardSettings(kind, 0.75)) == pytest.approx([-0.1])


# -- centred ranks --------------------------------------------------------------------------------------------------------


def test_centred_ranks_by_hand():
    """Ranks 1 to n about their middle (n + 1) / 2; ties share their mean rank."""
    assert centred_ranks([5.0, 9.0, 7.0]) == pytest.approx([-1 / 3, 1 / 3, 0])
    assert centred_ranks([5.0, 9.0, 5.0, 7.0]) == pytest.approx([-0.25, 0.375, -0.25, 0.125])  # ranks 3.5, 1, 3.5, 2
    assert centred_ranks([2.0, 2.0]) == [0, 0] and centred_ranks([4.0]) == [0] and centred_ranks([]) == []


SCORES = [list(np.random.default_rng(seed).integers(-4, 5, size=1 + seed % 9) / 2) for seed in range(60)]  # ties among them


@pytest.mark.parametrize("scores", SCORES)
def test_centred_ranks_sum_to_nothing_and_only_the_order_counts(scores):
    found = centred_ranks(scores)
    assert sum(found) == pytest.approx(0, abs=1e-12)
    assert all(-0.5 < rank < 0.5 for rank in found)
    for one, its in zip(scores, found, strict=True):
        assert [its > rank for rank in found] == [one > other for other in scores]
    for change in (lambda x: 3 * x + 40, math.exp, lambda x: x**3, lambda x: math.atan(x) - 9):
        assert centred_ranks([change(score) for score in scores]) == found
    assert centred_ranks([-score for score in scores]) == pytest.approx([-rank for rank in found], abs=1e-12)


def centred(siblings, image_weight=0.75):
    """Rewards of siblings (text, language, image) by the default kind."""
    return sibling_rewards(*map(list, zip(*siblings, strict=True)), RewardSettings(image_weight=image_weight))


CAT, DOG, SUN, END = ("A cat.", -1.0, 8.0), ("A dog.", -0.5, 2.0), ("A sun.", -2.0, 8.0), ("", -0.1, None)


def test_both_scores_are_ranked_among_different_sentences():
    """The image's ranks are 1.5, 3, 1.5 and the language's 2, 1, 3."""
    assert centred([CAT, DOG, SUN]) == pytest.approx([0.75 / 6, -0.25 + 0.25 / 3, 0.75 / 6 - 0.25 / 3])
    assert centred([CAT, DOG, SUN], 1.0) == pytest.approx([1 / 6, -1 / 3, 1 / 6])
    assert centred([CAT, DOG, SUN], 0.0) == pytest.approx([0, 1 / 3, -1 / 3])


def test_an_end_alone_is_worth_nothing_and_no_rank():
    alone = centred([CAT, DOG])
    assert centred([END, CAT, END, DOG, END]) == [0, alone[0], 0, alone[1], 0]
    assert centred([END, END]) == [0, 0] and centred([CAT]) == [0] and centred([END, CAT]) == [0, 0]


def test_equal_sentences_have_one_rank():
    """However many streams say the same, it counts as one, so the others' ranks stay too."""
    once = dict(zip(("cat", "dog", "sun"), centred([CAT, DOG, SUN]), strict=True))
    assert centred([CAT, DOG, CAT, SUN, DOG, CAT]) == [once[name] for name in ("cat", "dog", "cat", "sun", "dog", "cat")]


def test_an_answer_is_worth_more_for_a_sentence_better_than_its_siblings_alone():
    settings = RewardSettings()
    assert (settings.kind, settings.over) == ("centred", "sum")
    better, worse = centred([CAT, DOG])
    first, stop, going_on = 0.2, *centred([END, CAT])
    assert better > 0 > worse
    sums = [answer_reward([first, last], settings.over) for last in (better, stop, going_on, worse)]
    assert sums[0] > sums[1] == sums[2] == first > sums[3]


# -- calibrated without numbers -------------------------------------------------------------------------------------------


def test_a_calibrated_rewards_numbers_are_the_spread_of_the_runs_scores():
    scores = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    judge = judge_of(scores)
    assert judge.spread == (median(scores), pytest.approx(pstdev(scores) / 2))
    threshold, width = judge.spread
    filled = with_spread(Settings(reward=RewardSettings("calibrated")), judge)
    assert filled == Settings(reward=RewardSettings("calibrated", threshold=threshold, width=width))
    texts, language = [f"{score}." for score in scores], [-0.5] * len(scores)
    given = RewardSettings("calibrated", threshold=2.0, width=pstdev(scores) / 2)
    found = sibling_rewards(texts, language, scores, filled.reward)
    assert found == pytest.approx(sibling_rewards(texts, language, scores, given))
    assert fmean(reward > -0.05 for reward in found) == 0.5  # half of the sentences are above the threshold


def test_what_is_given_stays():
    judge = judge_of([3.0, -1.0])
    half = with_spread(Settings(reward=RewardSettings("calibrated", width=7.0)), judge).reward
    assert (half.threshold, half.width) == (1.0, 7.0)
    half = with_spread(Settings(reward=RewardSettings("calibrated", threshold=0.0)), judge).reward
    assert (half.threshold, half.width) == (0.0, 1.0)
    for kind in ("centred", "rank", "paper"):
        settings = Settings(reward=RewardSettings(kind))
        assert with_spread(settings, judge) is settings  # no other kind asks for them
    assert judge_of([2.0, 2.0]).spread == (2.0, 1.0)


def judge_of(scores):
    """A judge with these scores of its typical sentences."""
    images, sentences = [Path(f"{n}.png") for n in range(len(scores))], [f"{n}." for n in range(len(scores))]
    return made_judge(sentences=lambda some, texts: [scores[int(text[:-1])] for text in texts], typical=(images, sentences))


def test_language_scores():
    logps, penalised = [-1.0, -3.0], [-1.0, -6.0]
    assert language_score(logps, penalised, "raw_mean") == -2.0
    assert language_score(logps, penalised, "penalised_mean") == -3.5
    assert language_score(logps, penalised, "product") == pytest.approx(math.exp(-4))


def test_the_best_and_the_worst_two_of_fifteen_grow_on():
    scores = [float(-i) for i in range(15)]
    assert survivors(scores, 5, 1, 2) == [0, 13, 14]
    assert survivors(scores[::-1], 5, 1, 2) == [14, 1, 0]
    assert survivors([1.0, 3.0, 2.0, 0.0], 5, 1, 2) == [1, 2, 0, 3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " .",
        "no no no no no no",
        "A catttttttttttt.",
        "&nbsp; &nbsp;",
        "a\nb\nc\nd\ne\nf\ng",
        "Это кот.",
        "고양이.",
        "A 🐈.",
        "ca\ufffd.",
    ],
)
def test_broken_sentences_are_recognised(text):
    assert is_broken(text)


@pytest.mark.parametrize("text", ["A cat.", "No, no, no.", "1. One\n2. Two\n3. Three", "Ein Café, señor.", "it's 12:30 a.m."])
def test_sound_sentences_are_not_broken(text):
    assert not is_broken(text)


def test_a_tree_goes_to_a_row_and_back():
    first = Sentence(-1, 0, "A cat.", (4, 2), -1.0, -1.5, "grown", 21.0, -0.4, -0.4)
    end = Sentence(0, 2, "", (1,), -0.5, -0.5, "final", total=-0.4)
    tree = Tree("a", "a.png", "What?", 3, (first, end), 1, None, "A cat.")
    assert Tree.from_row(tree.to_row()) == tree
    assert tree.path(1) == [0, 1] and tree.path(None) == []


@pytest.mark.parametrize("bad", [{"image_weight": 1.1}, {"width": 0.0}])
def test_bad_settings_are_refused(bad):
    [(name, value)] = bad.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; it must be [^.]*\\.$"):
        RewardSettings(**bad)
