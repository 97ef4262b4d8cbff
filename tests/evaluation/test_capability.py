"""The capability check: questions of other kinds than the trained ones, their true answers, and what counts as right."""

from dataclasses import replace

import pytest
from made_evaluations import PROTOCOL, said
from random_policy import random_policy

from mlx_visalign.evaluation import capability
from mlx_visalign.evaluation.bootstrap import intervals
from mlx_visalign.evaluation.capability import SKILLS, Exercise
from mlx_visalign.evaluation.runner import changes, evaluate
from mlx_visalign.inference.policy import load
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.tiny_world.language import NUMBERS
from mlx_visalign.tiny_world.scenes import split
from mlx_visalign.tiny_world.source import world_mix
from mlx_visalign.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "right"), [("three", True), (" Three ", True), ("Three.", True), ("Four.", False), ("", False)]
)
def test_case_and_punctuation_make_no_difference(text, right):
    assert capability.is_right(text, "Three.") == right


def test_exercises_have_true_answers_about_every_scene():
    made, shown = world_benchmark("validation", 60), {f"validation-{s.seed}": s for s in split("validation", 60)}
    assert len(made.exercises) == 180 and {one.kind for one in made.exercises} == set(SKILLS)
    for one in made.exercises:
        things = shown[one.image].things
        if one.kind == "colour":
            shape = one.prompt.removeprefix("What colour is the ").removesuffix("?")
            assert [thing.type.colour.capitalize() for thing in things if thing.type.shape == shape] == [one.answer[:-1]]
        else:
            colour = one.prompt.removeprefix("How many ").split()[0]
            number = sum(colour in ("objects", thing.type.colour) for thing in things)
            assert one.answer == f"{NUMBERS[number]}."
    counted = [one.answer for one in made.exercises if one.kind == "count_colour"]
    assert 0.2 < counted.count("Zero.") / len(counted) < 0.8


def test_no_method_trains_on_such_questions():
    asked = {one.prompt for one in world_benchmark("validation", 60).exercises}
    mix = world_mix(16)
    assert asked.isdisjoint(mix.descriptions) and not any(prompt.startswith("Is there") for prompt in asked)


def test_figures_are_shares_by_kind():
    asked = [("a", "colour", "Red."), ("a", "count", "Two."), ("b", "count", "One."), ("b", "count_colour", "Zero.")]
    exercises = [Exercise(str(i), image, "?", answer, kind) for i, (image, kind, answer) in enumerate(asked)]
    counts = capability.count(exercises, {"0": "red", "1": "Three.", "2": "One.", "3": "Zero"})
    assert counts.images == ("a", "b")
    found = {name: figure.value for name, figure in intervals(counts, capability.metrics, seed=0).items()}
    assert found == {"accuracy": 3 / 4, "colour": 1, "count": 1 / 2, "count_colour": 1}


def test_the_tiny_model_can_do_most_of_them():
    figures = evaluate(load("tiny"), world_benchmark("validation", 24), batch=24).figures
    assert figures["capability"]["accuracy"].value > 0.7


def test_without_exercises_there_is_no_such_figure():
    assert "capability" not in said({"a": "", "b": "", "c": ""}, {"a": "Yes.", "b": "No."}).figures


def test_evaluations_with_other_exercises_are_not_compared():
    one = said({"a": "", "b": "", "c": ""}, {"a": "Yes.", "b": "No."})
    more = replace(one.benchmark, exercises=[Exercise("x", "a", "How many?", "One.", "count")])
    other = evaluate(random_policy(), more, PROTOCOL)
    assert other.figures["capability"].keys() == {"accuracy", *SKILLS}
    with pytest.raises(UserError, match="cannot be compared"):
        changes(one, other)
