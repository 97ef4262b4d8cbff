"""What every stage of a run takes, against MLX's own meter while the stage's own code runs; and operations counted."""

from dataclasses import replace

import mlx.core as mx
import pytest
from measured_peaks import LLAVA_7B, around, made, nothing_else, peak, policy_of, prompts
from mlx.utils import tree_flatten
from random_llava import IMAGE_TOKENS

from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods import csr, fisao, seva
from mlx_visalign.methods.csr.scoring import AnswerSettings
from mlx_visalign.methods.csr.sentence_tree import Stops, grow
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import JudgeSettings, _Parts
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.models.value_head import ValueHead
from mlx_visalign.preflight.memory import Setting, training_bytes
from mlx_visalign.preflight.workload import answering_bytes, training_flops
from mlx_visalign.runs.run import Run
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.ppo import train_on_rollouts
from mlx_visalign.training.rollouts import RolloutSource
from mlx_visalign.training.trajectory import Rewarded

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures(nothing_else.__name__)]
ANSWER, TOGETHER = 24, 3
ASKED = [Prompt(str(i), f"{i}.png", "?", "describe") for i in range(TOGETHER)]
FORMS = ("grouped, deep", "words", "bfloat16", "4-bit, float32")  # of SHAPES


def seen(images):
    return mx.random.normal((len(images), IMAGE_TOKENS, 64), key=mx.random.key(0))


@pytest.fixture(params=FORMS)
def large(request, monkeypatch):
    """A shape, a setting and a policy that has them, whose prompts and answers are as long as may be."""
    shape, model, setting = made(request.param, rank=4, answer=ANSWER)
    policy = policy_of(model)
    monkeypatch.setattr(policy, "prompt_ids", lambda question: prompts(1, setting.prompt)[0])
    monkeypatch.setattr(policy, "response_ids", lambda text, ended=True: [8] * ANSWER)
    monkeypatch.setattr(policy, "features", seen)
    monkeypatch.setattr(policy, "image_features", seen)
    return shape, setting, policy


def test_seva_answers_clean_and_distorted(large, tmp_path, monkeypatch):
    shape, setting, policy = large
    monkeypatch.setattr(seva.views, "see", lambda *_: mx.zeros((28, 28, 3)))
    job = Job(Run(tmp_path), policy, ASKED, seed=0)
    settings = seva.Settings(max_tokens=ANSWER, batch=TOGETHER)
    (stage,) = settings.workload(ASKED).stages
    with peak() as highest:
        for _ in range(2):  # how far MLX works ahead differs from time to time: the higher peak counts
            seva.sample(job, settings, ASKED, 1)
    around(answering_bytes(shape, setting, stage), highest())


def test_a_tree_as_wide_and_as_deep_as_may_be(large):
    """CSR's: no stream ever stops but at `sentence_tokens`, and as many grow on as may."""
    shape, setting, policy = large
    settings = AnswerSettings(num_beam_groups=3, sentence_tokens=8, max_tokens=17)
    prompt_ids = prompts(2, setting.prompt)

    def keep(level):
        return [[node for node in nodes if not node.final][: settings.widest] for nodes in level]

    with peak() as highest:
        prefix = policy.prefill(policy.image_features(prompt_ids), prompt_ids)
        trees = grow(decoder_of(policy.model), prefix, Stops(-1, -2), settings.growth, keep)
        policy.score(prefix, [[[8] * settings.longest] * 2] * 2).tolist()
    assert max(len(node.answer) for nodes in trees for node in nodes) == settings.longest
    around(answering_bytes(shape, setting, settings.answering("answering", prompts=2, together=2)), highest())


def test_a_judge_samples_several_answers_about_an_image(large, tmp_path):
    shape, setting, policy = large
    settings = csr.Settings(max_tokens=ANSWER, batch=TOGETHER, judge=JudgeSettings(samples=4))
    parts = _Parts(Job(Run(tmp_path), policy, ASKED, seed=0), settings)
    stage, _ = settings.judge.workload(len(ASKED), TOGETHER, ANSWER)
    with peak() as highest:
        for _ in range(2):
            assert all(len(row.answers) == 4 for row in parts.sample(ASKED))
    around(answering_bytes(shape, setting, stage), highest())


SETTINGS = PPOSettings(
    rollout_batch_size=TOGETHER, batch_size=TOGETHER, grad_accumulation_steps=1, num_ppo_epochs=1, lora=LoRASettings(4)
)


def reward_function(prompts, answers):
    return [(Rewarded("a ball", 0, 1, 0, 0, 1.0, 1.0),)] * len(prompts)


def test_rollouts_within_a_training(large, tmp_path):
    """FiSAO's: sampled, read with values, and read without the adapter, beside Adam's moments."""
    shape, setting, policy = large
    settings = fisao.Settings(max_tokens=ANSWER, train=SETTINGS)
    stage = settings.workload(ASKED).stages[-1]
    policy.attach(SETTINGS.lora, seed=0)
    moments = [mx.zeros_like(array) for _ in range(2) for _, array in tree_flatten(policy.model.trainable_parameters())]
    mx.eval(moments)
    critic = ValueHead(decoder_of(policy.model).norm.weight.shape[0])
    sampling = Sampling(ANSWER, temperature=1.0)
    source = RolloutSource(policy, critic, ASKED, reward_function, SETTINGS, sampling, tmp_path, 0, locate=tmp_path.joinpath)
    with peak() as highest:
        for _ in range(2):
            source.next()
    around(answering_bytes(shape, setting, stage), highest())


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
def test_an_update_by_rewards(large, checkpoint, tmp_path):
    """PPO: one answer a prompt, and its rollout before; the higher of the two."""
    shape, setting, policy = large
    train = replace(SETTINGS, iters=2, grad_checkpoint=checkpoint)
    stage = fisao.Settings(max_tokens=ANSWER, train=train).workload(ASKED).stages[-1]
    setting = replace(setting, batch=TOGETHER, copies=1, checkpoint=checkpoint)
    with peak() as highest:
        train_on_rollouts(
            policy, ASKED, reward_function, train, Sampling(ANSWER, 1.0), tmp_path, 0, locate=tmp_path.joinpath, depends_on={}
        )
    around(max(training_bytes(shape, setting), answering_bytes(shape, setting, stage)), highest())


# -- operations -----------------------------------------------------------------------------------------------------------
# Counted in exported graphs by tests/benchmarks/flops.py, at 636 tokens of image and prompt and answers of 120.


def test_operations_of_a_pair_at_7b():
    told = training_flops(LLAVA_7B, Setting(prompt=636, answer=120))
    assert told / 1e12 == pytest.approx(23.3, rel=0.05)
