"""Sentences that explain a report's controls, derived from the figures."""

from collections.abc import Mapping
from typing import Any

from mlx_visalign.data.training_log import Row
from mlx_visalign.utils.formatting import with_minus

GAINS = {"chair": ("F1 of descriptions", "f1"), "pope_adversarial": ("accuracy on adversarial yes/no questions", "accuracy")}
BLIND, BEST = "image blanked", "untrained, best of 8"
NAMES = {
    "random": "preferred by a coin",
    "shorter": "the shorter preferred",
    "blind": BLIND,
    "best": BEST,
}
"""The names of the controls in a report."""


def in_words(report: Mapping[str, Any]) -> list[str]:
    """Sentences on controls and capability.

    How much of each gain needs the image, what best-of-n of the untrained model reaches, and whether other abilities were
    kept.
    """
    change, controls = report["change"], report.get("controls", {})
    said = []
    for group, (label, name) in GAINS.items():
        if BLIND in controls and group in change and (group == "chair" or change[group][name]["low"] > 0):
            said.append(_needs_the_image(label, change[group][name], controls[BLIND]["change"][group][name]))
    if "chair" in change and BEST in controls:
        said.append(_untrained(change["chair"]["f1"], controls[BEST]["change"]["chair"]["f1"]))
    if "capability" in change:
        said.append(_capability(report["before"]["capability"]["accuracy"], change["capability"]["accuracy"]))
    return said


def _needs_the_image(label: str, change: Row, blind: Row) -> str:
    gain, without = change["value"], blind["value"]
    same = f"the same training with every image replaced by a blank one changes it by {_points(without)}"
    if change["low"] <= 0:
        return f"The {label} has no clear gain ({_points(gain)}) that the image could explain; {same}."
    if without >= gain:
        return f"None of the gain of {_points(gain)} in {label} needs the image: {same}."
    if without <= 0:
        return f"All of the gain of {_points(gain)} in {label} needs the image: {same}."
    return f"Of the gain of {_points(gain)} in {label}, {_points(gain - without)} need the image: {same}."


def _untrained(change: Row, best: Row) -> str:
    relation = "more than" if change["value"] > best["value"] else "no more than"
    return (
        f"Training changes the F1 of one greedy answer by {_points(change['value'])}, {relation} the untrained model gains "
        f"({_points(best['value'])}) when the method's own score picks the best of eight sampled answers."
    )


def _capability(before: Row, change: Row) -> str:
    interval = f"{_points(change['value'])} [{_number(change['low'])}, {_number(change['high'])}]"
    if change["high"] < 0:
        outcome = "some of this ability was lost"
    elif change["low"] > 0:
        outcome = "this ability grew"
    else:
        outcome = "no clear change"
    asked = "Accuracy on questions about colour and count, which were not trained,"
    return f"{asked} was {100 * before['value']:.1f} % before and changes by {interval}: {outcome}."


def _points(value: float) -> str:
    return f"{_number(value)} points"


def _number(value: float) -> str:
    return with_minus(f"{100 * value:z.1f}")
