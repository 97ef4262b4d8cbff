"""Evaluation: an image read once answers as if every question had its own prompt, and figures follow from the answers."""

from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import PROTOCOL, TRUTH, benchmark, said
from random_policy import random_policy

from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.object_labels import ObjectCounts
from mlx_visalign.evaluation.runner import Protocol, changes, evaluate, features, split_prompt
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.tiny_world.scenes import TYPES, partner, split
from mlx_visalign.utils.errors import UserError

PARTNERS = {str(type): str(partner(type)) for type in TYPES}


def test_the_shared_part_of_a_prompt_ends_with_the_image():
    policy = random_policy()
    for template in ("vicuna_v1", "hf"):
        policy.template = template
        before, after = split_prompt(policy, "Is there a red circle in the image?")
        other, _ = split_prompt(policy, "Describe this image in detail.")
        assert before == other and before[-1] == policy.image_token and policy.image_token not in after
        assert before + after == policy.prompt_ids("Is there a red circle in the image?")


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_those_of_separate_prompts(template, batch):
    policy, made = random_policy(), benchmark()
    policy.template = template
    evaluation = evaluate(policy, made, PROTOCOL, batch=batch)
    prompts = {(question.image, question.prompt): 4 for questions in made.questions.values() for question in questions}
    prompts |= {(image, PROTOCOL.prompt): 10 for image in TRUTH}
    assert len(evaluation.responses) == len(prompts) == 7  # the question that two splits share is asked once
    for (image, prompt), longest in prompts.items():
        seen = policy.features(policy.pixels(made.pictures[image])[None])
        [alone] = policy.generate(policy.prefill(seen, [policy.prompt_ids(prompt)]), Sampling(longest))
        response = evaluation.answer(image, prompt)
        assert (response.text, response.finished, response.tokens) == (alone.text, alone.finished, len(alone.ids))


def test_files_go_through_the_cache(tmp_path):
    policy, made = random_policy(), benchmark()
    paths = [tmp_path / f"{image}.png" for image in made.pictures]
    for path, picture in zip(paths, made.pictures.values(), strict=True):
        picture.save(path)
    drawn, read = features(policy, list(made.pictures.values())), features(policy, paths)
    assert len(policy.cache.entries) == 3
    np.testing.assert_allclose(np.array(read), np.array(drawn), rtol=2e-3, atol=2e-3)  # the cache keeps float16
    with pytest.raises(ValueError, match="not both"):
        features(policy, [paths[0], made.pictures["a"]])


def test_photos_without_labels_give_lengths_only():
    pictures = benchmark().pictures
    evaluation = evaluate(random_policy(), Benchmark("photos", pictures), PROTOCOL)
    assert evaluation.figures.keys() == {"length"}
    lengths = [response.tokens for response in evaluation.responses]
    assert evaluation.figures["length"]["tokens"].value == pytest.approx(np.mean(lengths))


def test_figures_follow_from_the_answers():
    before = said({"a": "A cat and a dog.", "b": "A cat.", "c": "A cup."}, {"a": "Yes.", "b": "No."})
    figures = before.figures
    assert figures["chair"]["chair_i"].value == 2 / 4
    assert figures["chair"]["chair_s"].value == pytest.approx(2 / 3)
    assert figures["chair"]["recall"].value == pytest.approx(2 / 3)
    assert figures["pope_random"]["accuracy"].value == pytest.approx(1 / 3)
    assert figures["pope_random"]["yes_rate"].value == pytest.approx(2 / 3)
    assert figures["pope_popular"]["accuracy"].value == 0.5
    assert figures["length"]["cut_off"].value == 0


def test_changes_are_paired_by_image():
    before = said({"a": "A cat and a dog.", "b": "A cat.", "c": "A cup."}, {"a": "Yes.", "b": "No."})
    after = said({"a": "A cat.", "b": "A cat.", "c": "Nothing."}, {"a": "Yes.", "b": "Yes."})
    change = changes(before, after)
    assert change["chair"]["chair_i"].value == -0.5
    assert change["pope_random"]["recall"].value == 0.5
    unmoved = changes(before, before)
    assert all((figure.low, figure.value, figure.high) == (0, 0, 0) for group in unmoved.values() for figure in group.values())


def test_evaluations_of_other_things_are_not_compared():
    one = said({"a": "", "b": "", "c": ""}, {"a": "Yes.", "b": "No."})
    with pytest.raises(UserError, match="cannot be compared"):
        changes(one, replace(one, protocol=Protocol("What else?")))


def test_a_missing_answer_is_an_error():
    evaluation = said({"a": "A cat.", "b": "A cat."}, {"a": "Yes.", "b": "No."})
    with pytest.raises(UserError, match="about the image c is missing"):
        _ = evaluation.figures


def test_world_questions_ask_about_absent_partners():
    made = world_benchmark("validation", 40)
    assert len(made.pictures) == len(made.annotations) == 40
    for questions in made.questions.values():
        assert sum(question.label == "yes" for question in questions) * 2 == len(questions)
        for question in questions:
            name = question.prompt.removeprefix("Is there a ").removesuffix(" in the image?")
            assert (name in made.annotations[question.image]) == (question.label == "yes")
    for question in made.questions["adversarial"]:
        there = made.annotations[question.image]
        assert question.label == "yes" or any(PARTNERS[name] in question.prompt for name in there)
    assert made.questions == world_benchmark("validation", 40).questions


def test_partners_are_the_most_frequent_companions():
    counts = ObjectCounts.of({str(type) for type in scene.types} for scene in split("pretraining", 3000))
    assert {name: counts.companions(name)[0] for name in counts.single} == PARTNERS
