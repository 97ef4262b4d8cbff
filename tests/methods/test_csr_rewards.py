"""Sentence rewards: the spec's trees in rank and paper mode, what is pruned, what is broken."""

import math

import pytest

from mlx_visalign.methods.csr.rewards import (
    RewardSettings,
    Sentence,
    Tree,
    answer_reward,
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
        found |= dict(zip(family, sibling_rewards(language, image, settings), strict=True))
    return found


def totals(settings, families=FAMILIES):
    own = rewards(settings, families)
    return {leaf: answer_reward([own[node] for node in (first, leaf) if node], settings.over) for leaf, first in PATHS.items()}


def ends(values):
    return max(values, key=values.get), min(values, key=values.get)


def test_rank_rewards_are_the_specs_costs():
    found = totals(RewardSettings(over="sum"))
    expected = {"b2": 0.666667, "b1": 0.933333, "a1": 1.25, "b3": 1.3, "c": 1.0, "a2": 1.65}
    assert found == pytest.approx({leaf: -cost for leaf, cost in expected.items()}, abs=1e-6)
    over_code = totals(RewardSettings(over="code"))
    expected = {"b2": 0.222222, "b1": 0.311111, "a1": 0.416667, "b3": 0.433333, "c": 0.5, "a2": 0.55}
    assert over_code == pytest.approx({leaf: -cost for leaf, cost in expected.items()}, abs=1e-6)
    assert ends(over_code) == ("b2", "a2")


def test_rank_rewards_with_little_weight_on_the_image():
    found = totals(RewardSettings(image_weight=0.1, over="code"))
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
    assert sibling_rewards([0.0], [-27.2], RewardSettings("paper", 1.0)) == [0.0]


def test_calibrated_rewards_turn_negative_below_the_threshold():
    settings = RewardSettings("calibrated", 1.0, threshold=20.0, width=4.0)
    low, even, high = sibling_rewards([0.0] * 3, [16.0, 20.0, 24.0], settings)
    assert even == 0 and high == -low == pytest.approx(2 / (1 + math.exp(-1)) - 1)


def test_equal_scores_rank_in_their_order_and_a_lone_child_is_worst():
    assert ranks([3.0, 5.0, 3.0]) == [2, 1, 3]
    assert sibling_rewards([-0.1], [30.0], RewardSettings()) == [-1.0]


def test_an_end_alone_fits_worst_and_counts_nothing():
    assert sibling_rewards([-0.1, -0.2], [None, -5.0], RewardSettings(over="sum")) == pytest.approx([-0.95, -0.55])
    for kind in ("paper", "calibrated"):
        assert sibling_rewards([-0.4], [None], RewardSettings(kind, 0.75)) == pytest.approx([-0.1])


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
