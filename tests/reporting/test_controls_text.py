"""What controls mean, in words: they follow the figures, whichever way these turned out."""

import pytest

from mlx_visalign.reporting.controls_text import BEST, BLIND, in_words


def change(value, reach=0.005):
    return {"value": value, "low": value - reach, "high": value + reach}


def report(gain, blind=None, best=None, capability=None):
    sides = {"chair": {"f1": change(gain)}}
    controls = {name: {"change": {"chair": {"f1": change(v)}}} for name, v in ((BLIND, blind), (BEST, best)) if v is not None}
    known = {} if capability is None else {"capability": {"accuracy": change(capability)}}
    before = {"capability": {"accuracy": change(0.9)}}
    return {"before": before, "change": sides | known, "controls": controls}


@pytest.mark.parametrize(
    ("gain", "blind", "words"),
    [
        (0.032, 0.003, "Of the gain of 3.2 points in F1 of descriptions, 2.9 points need the image"),
        (0.032, 0.04, "None of the gain of 3.2 points in F1 of descriptions needs the image"),
        (0.032, -0.01, "All of the gain of 3.2 points in F1 of descriptions needs the image"),
        (0.004, 0.003, "The F1 of descriptions has no clear gain (0.4 points)"),
    ],
)
def test_how_much_of_the_gain_needs_the_image(gain, blind, words):
    [said] = in_words(report(gain, blind))
    assert said.startswith(words) and f"{100 * blind:.1f}".replace("-", "\N{MINUS SIGN}") in said


def test_yes_no_answers_are_spoken_of_where_they_gained():
    for gain, count in ((0.03, 2), (0.0, 1)):
        made = report(0.03, 0.01)
        made["change"]["pope_adversarial"] = {"accuracy": change(gain)}
        made["controls"][BLIND]["change"]["pope_adversarial"] = {"accuracy": change(0.01)}
        assert len(in_words(made)) == count


def test_nothing_is_never_minus_nothing():
    assert "(0.0 points)" in in_words(report(0.03, best=-0.0001))[0]


@pytest.mark.parametrize(("best", "words"), [(0.01, "3.0 points, more than"), (0.05, "3.0 points, no more than")])
def test_what_the_untrained_model_gets(best, words):
    [said] = in_words(report(0.03, best=best))
    assert words in said and f"({100 * best:.1f} points)" in said


@pytest.mark.parametrize(("moved", "words"), [(-0.02, "was lost"), (0.02, "grew"), (0.001, "no clear change")])
def test_other_abilities(moved, words):
    [said] = in_words(report(0.03, capability=moved))
    assert words in said and "90.0 % before" in said


def test_without_controls_and_labels_nothing_is_said():
    assert in_words({"before": {}, "change": {"length": {}}}) == []
