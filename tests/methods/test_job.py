"""What a job offers every method: the length guard of its training, and what that costs."""

from dataclasses import replace
from statistics import fmean

import pytest

from mlx_visalign.data.questions import make_prompts
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.job import WATCHED, WATCHED_TOGETHER, Job, watching
from mlx_visalign.methods.preference_rounds import PairSettings
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.dpo import PreferenceSettings

SETTINGS = PairSettings(max_tokens=40, train=PreferenceSettings(iters=25))


def test_the_guard_measures_the_runs_descriptions(tmp_path):
    prompts = make_prompts(world_photos(tmp_path, "unlabelled", WATCHED_TOGETHER + 1, 0), world_mix(1), 0)
    job = Job(Run(tmp_path), load("tiny"), prompts, seed=0)
    guard = job.length_guard(SETTINGS, updates=25)
    described = [prompt for prompt in prompts if prompt.kind == "describe"]
    alone = [job.policy.generate(job.prefill([prompt]), Sampling(40))[0] for prompt in described]
    assert guard.base_tokens == pytest.approx(fmean(len(answer.ids) for answer in alone))
    assert (guard.updates, guard.min_share, guard.run) == (25, 0.75, tmp_path)
    questions = [prompt for prompt in prompts if prompt.kind == "exists"]
    assert replace(job, prompts=questions).length_guard(SETTINGS, updates=25) is None


def test_its_work_is_that_of_all_measurements():
    asked = [Prompt(str(n), f"{n}.png", "Q?", "describe") for n in range(100)]
    [stage] = watching(SETTINGS, asked, rounds=2)
    assert stage.total == 2 * WATCHED * 4  # the base, and after 10, 20 and 25 updates
    assert stage.sampled == stage.total * 40
    assert watching(SETTINGS, [Prompt("a", "a.png", "Q?", "exists")], rounds=1) == ()
