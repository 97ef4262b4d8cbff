"""Best-of-n without training: the method's own reward picks among samples of the base."""

from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import PROTOCOL, benchmark
from random_policy import random_policy
from small_runs import SETTINGS, TRUE_REWARD

from mlx_visalign import methods
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.evaluation.runner import evaluate
from mlx_visalign.inference.policy import load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods import csr
from mlx_visalign.methods.job import Job
from mlx_visalign.pipeline.best_of_n import SAMPLES, as_files, best_of, with_descriptions
from mlx_visalign.pipeline.evaluations import measure_best
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import find_reward
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.utils.arguments import DESCRIBE
from mlx_visalign.utils.schema import build
from mlx_visalign.utils.seeding import key_for


def longest(prompts, prefix, answers):
    return [[float(len(answer.ids)) for answer in some] for some in answers]


def never_called(prompts, prefix, answers):
    raise AssertionError("asked again")


def test_the_best_of_what_the_keys_draw_is_taken(tmp_path):
    policy, made = random_policy(), benchmark()
    images = as_files(made, tmp_path / "images")
    job = Job(Run(tmp_path), policy, [], seed=4)
    found = best_of(job, longest, images, PROTOCOL)(["b", "a"])
    for response in found:
        prefix = policy.prefill(policy.image_features([images[response.image]]), [policy.prompt_ids(PROTOCOL.prompt)])
        keys = [key_for(4, "best of", response.image, number) for number in range(SAMPLES)]
        drawn = policy.generate(prefix, Sampling(PROTOCOL.max_tokens, 1.0), keys, SAMPLES)
        assert response.tokens == max(len(answer.ids) for answer in drawn)
        assert response.text in {answer.text for answer in drawn}


def test_answers_to_questions_stay(tmp_path):
    policy, made = random_policy(), benchmark()
    base = evaluate(policy, made, PROTOCOL)
    job = Job(Run(tmp_path), policy, [], seed=4)
    best = measure_best(job, longest, base, "best", {})
    assert best.figures["pope_random"] == base.figures["pope_random"]
    assert any(best.description(image) != base.description(image) for image in made.pictures)
    assert measure_best(job, never_called, base, "best", {}).responses == best.responses  # kept: not ranked again
    assert with_descriptions(base, [base.description(image) for image in made.pictures]).figures == base.figures


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run's job, without a run, and two answers to each of two scenes: the truth, and what is not there."""
    folder = tmp_path_factory.mktemp("run")
    prompts = make_prompts(world_photos(folder, "unlabelled", 12, 0), world_mix(0), 0)
    return Job(Run(folder), load("tiny"), prompts, 0, vocabulary=world_mix(0).vocabulary, reward=find_reward(str(TRUE_REWARD)))


@pytest.mark.parametrize("method", methods.names())
def test_every_method_prefers_what_is_there(world, method, tmp_path):
    settings = build(methods.find(method).Settings, SETTINGS[method], "test")
    made = world_benchmark("validation", 2)
    images = as_files(made, tmp_path)
    policy, ids = world.policy, world.policy.prompt_ids(DESCRIBE)
    prefix = policy.prefill(policy.image_features(list(images.values())), [ids] * 2)
    prompts = [replace(world.prompts[0], image=str(path)) for path in images.values()]
    greedy = policy.generate(prefix, Sampling(64))
    absent = "A small white cross at the top."
    assert all("white cross" not in names for names in made.annotations.values())
    wrong = [replace(answer, text=absent, ids=policy.response_ids(absent)) for answer in greedy]
    with world.run:
        rank = methods.find(method).ranking(world, settings)
        worth = rank(prompts, prefix, [list(two) for two in zip(greedy, wrong, strict=True)])
    assert np.array(worth).shape == (2, 2) and all(one > other for one, other in worth)


def test_an_answer_without_an_end_is_worth_nothing_to_csr(world, tmp_path):
    settings = build(csr.Settings, SETTINGS["csr"], "test")
    images = as_files(world_benchmark("validation", 1), tmp_path)
    policy, [path] = world.policy, images.values()
    prefix = policy.prefill(policy.image_features([path]), [policy.prompt_ids(DESCRIBE)])
    [cut], [whole] = policy.generate(prefix, Sampling(3)), policy.generate(prefix, Sampling(64))
    worth = csr.ranking(world, settings)([replace(world.prompts[0], image=str(path))], prefix, [[cut, whole]])
    assert worth[0][0] == -np.inf < worth[0][1]
