"""Rollouts: what is sampled is what is learned from, saved before it is used, ended where it should end."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_policy import random_policy

from mlx_visalign.data.records import Prompt, read_jsonl
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.lora import LoRASettings, adapter_at
from mlx_visalign.models.value_head import ValueHead
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.ppo import ppo_loss
from mlx_visalign.training.rollouts import RolloutSource
from mlx_visalign.training.trajectory import Rewarded, Rollout, figures, weighed
from mlx_visalign.utils.errors import UserError

SETTINGS = PPOSettings(
    rollout_batch_size=4, batch_size=2, grad_accumulation_steps=1, num_ppo_epochs=2, lora=LoRASettings(rank=2)
)
PROMPTS = [Prompt(f"p{i}", f"{i}.png", "Describe this image in detail." + " Now." * i) for i in range(3)]


def first_words(prompts, answers):
    """A made-up reward: the first two tokens are a mention, which earns more in a longer answer."""
    return [(Rewarded("word", 0, 4, 0, 1, 0.3, len(ids) / 10),) for ids in answers]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy that has moved away from its reference."""
    one = random_policy()
    one.attach(LoRASettings(rank=2), seed=1)
    for index, (name, layer) in enumerate(one.model.named_modules()):
        if name.endswith("q_proj") and hasattr(layer, "lora_b"):
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    return one


@pytest.fixture
def source(policy, tmp_path):
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return make_source(policy, tmp_path)


def make_source(policy, folder, reward_function=first_words, settings=SETTINGS, locate=None, blank=None):
    critic = ValueHead(policy.model.language_model.config.hidden_size)
    critic.linear.weight = mx.random.normal(critic.linear.weight.shape, key=mx.random.key(9))
    sampling, locate = Sampling(6, temperature=1.0), locate or (lambda path: folder / path)
    return RolloutSource(policy, critic, PROMPTS, reward_function, settings, sampling, folder, 7, locate, blank)


def test_figures_and_weights_of_a_rollout():
    """The spec's six tokens, the second answer cut off in the middle of a word."""
    one = Rollout(
        "a",
        "text",
        True,
        (1, 2, 3, 4, 5, 6),
        (Rewarded("cat", 0, 3, 1, 2, 0.3, 0.5), Rewarded("dog", 4, 7, 4, 4, 0.1, -0.75)),
        logps=(-0.10, -1.20, -0.40, -0.05, -2.00, -0.30),
        reference_logps=(-0.12, -1.00, -0.50, -0.05, -1.50, -0.35),
        values=(0, 0.05, 0.10, -0.05, -0.10, 0, 0),
    )
    [alone] = weighed([one], PPOSettings(kl_coef=0.05, gamma=1.0, lam=0.95))
    whitened = [0.663114, 0.441988, 0.165652, -1.254122, -1.184013, 1.167380]
    np.testing.assert_allclose(alone.advantages, whitened, atol=1e-5)
    np.testing.assert_allclose(alone.returns, [-0.136507, -0.145271, -0.168706, -0.696006, -0.727375, -0.0025], atol=1e-6)
    short = replace(one, tokens=(1, 2), rewarded=(), logps=(-1.0, -1.0), reference_logps=(-1.0, -1.0), values=(0.0, 0.0, 0.5))
    found = figures([one, short])
    assert found == pytest.approx({"reward": -0.125, "kl": -0.265, "length": 4, "mentions": 1, "rewarded": 1})
    both = weighed([one, short], PPOSettings(kl_coef=0.05, gamma=1.0, lam=0.95))
    np.testing.assert_allclose(both[0].returns, alone.returns, atol=1e-6)  # whitened together, but each its own returns
    np.testing.assert_allclose(both[1].returns, [0.95 * 0.5, 0.5], atol=1e-6)
    assert np.mean(both[0].advantages + both[1].advantages) == pytest.approx(0, abs=1e-6)


def test_before_the_first_update_every_ratio_is_exactly_one(source):
    loss = ppo_loss(source.policy, source.critic, SETTINGS)
    for _ in range(2 * source.per_epoch):
        _, metrics = loss(source.next())
        assert metrics["ratio_off"].item() == 0 and metrics["approx_kl"].item() == 0
        assert metrics["value_loss"].item() > 0


def test_a_rollout_holds_what_the_policy_says_of_it(source):
    batch = source.next()
    rows = read_jsonl(source.folder / "0000000.jsonl", Rollout)
    assert len(rows) == 4 and sorted(row.id for row in rows[:3]) == ["p0", "p1", "p2"]
    policy, prompts = source.policy, {prompt.id: prompt for prompt in PROMPTS}
    for row in rows:
        asked = policy.prompt_ids(prompts[row.id].prompt)
        features = policy.image_features([source.locate(prompts[row.id].image)])
        score = policy.score(policy.prefill(features, [asked]), [[list(row.tokens)]]).item()
        with adapter_at(policy.model, 0):
            reference = policy.score(policy.prefill(features, [asked]), [[list(row.tokens)]]).item()
        assert sum(row.logps) == pytest.approx(score, abs=1e-4)
        assert sum(row.reference_logps) == pytest.approx(reference, abs=1e-4)
        assert abs(score - reference) > 1e-3
        assert row.token_rewards.tolist() == pytest.approx([0, len(row.tokens) / 10, *[0] * (len(row.tokens) - 2)])
        assert (row.values[-1] == 0) == row.finished
    assert batch.figures == figures(rows)


def test_with_a_blank_image_the_same_is_said_and_rewarded_and_only_learning_is_blind(source, tmp_path):
    seen = source.next()
    blank = tmp_path / "blank.png"
    Image.new("RGB", (28, 28), (122, 116, 104)).save(blank)
    blind = make_source(source.policy, tmp_path / "blind", locate=source.locate, blank=blank)
    _, metrics = ppo_loss(blind.policy, blind.critic, SETTINGS)(batch := blind.next())
    assert batch.images == [blank] * 2 and batch.responses == seen.responses
    assert metrics["ratio_off"].item() == 0
    for row, other in zip(blind.rows, source.rows, strict=True):
        for name in ("rewarded", "logps", "reference_logps"):
            assert vars(row)[name] == vars(other)[name], name
        assert row.blind_logps != row.logps and row.values != other.values and other.blind_logps == ()


def test_prompts_come_in_turn_and_answers_depend_on_the_seed(policy, source):
    ids = []
    for _ in range(3):
        source.taken = 99
        source.next()
        ids += [row.id for row in source.rows]
    assert [sorted(ids[at : at + 3]) for at in range(0, 12, 3)] == [["p0", "p1", "p2"]] * 4
    first = source.rows
    again = make_source(policy, source.folder.parent)
    again.number = 1
    again.next()
    assert again.rows == first
    again.number, again.taken, again.seed = 1, 99, 8
    again.next()
    assert [row.tokens for row in again.rows] != [row.tokens for row in first]


def test_a_rollout_is_used_so_often_in_changing_order(source):
    seen = [tuple(source.next().ids) for _ in range(8)]
    assert sorted(seen[:2]) == sorted(seen[2:4]) and source.number == 1
    assert sorted(seen[4:6]) == sorted(seen[6:8]) != sorted(seen[:2])


def test_restored_in_the_middle_it_goes_on_with_the_saved_numbers(policy, source):
    source.next()
    state = source.state()
    expected = source.next()
    called = []
    again = make_source(policy, source.folder.parent, reward_function=lambda *batch: called.append(batch))
    again.restore(state)
    found = again.next()
    assert found.ids == expected.ids and found.responses == expected.responses and not called
    for name in ("logps", "advantages", "values", "returns"):
        assert (vars(found)[name] == vars(expected)[name]).all(), name


def test_it_ends_early_where_the_policy_has_left_it(source):
    source.next()
    source.observe({"ratio_off": 0.0, "approx_kl": 0.09})
    source.next()
    assert source.number == 0
    source.observe({"ratio_off": 0.4, "approx_kl": 0.11})
    source.next()
    assert source.number == 1


def test_a_machine_that_cannot_repeat_itself_is_found_out(source):
    source.next()
    with pytest.raises(RuntimeError, match="does not compute the same"):
        source.observe({"ratio_off": 2e-3, "approx_kl": 0.0})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_kl": -10.0}, "nats per answer, above max_kl"),
        ({"min_share": 1e9}, "the answers' mean length fell"),
    ],
)
def test_a_policy_that_runs_away_is_stopped(policy, source, change, why):
    settings = replace(SETTINGS)
    for name, value in change.items():
        object.__setattr__(settings, name, value)  # a limit that even an untrained policy is beyond, which users may not set
    with pytest.raises(UserError, match=why) as stopped:
        make_source(policy, source.folder.parent, settings=settings).next()
    run = source.folder.parent
    assert f"--reuse {run}" in str(stopped.value) and str(run / "checkpoints") in str(stopped.value)


def test_rollouts_without_reward_are_passed_over(policy, source, capsys):
    calls = []

    def late(prompts, answers):
        calls.append(len(answers))
        return first_words(prompts, answers) if len(calls) > 4 else [() for _ in answers]

    one = make_source(policy, source.folder.parent, reward_function=late)
    one.next()
    assert one.number == 2 and "nothing in 4 answers was rewarded" in capsys.readouterr().err
    with pytest.raises(UserError, match="Nothing was rewarded"):
        make_source(policy, source.folder.parent, reward_function=lambda prompts, answers: [() for _ in answers]).next()


def test_few_rewards_are_worth_a_word(policy, source, capsys):
    one, nothing = (Rewarded("word", 0, 4, 0, 1, 0.3, reward) for reward in (1.0, 0.0))
    make_source(policy, source.folder.parent, reward_function=lambda prompts, answers: [(one, nothing)] * len(answers)).next()
    assert "warning" not in capsys.readouterr().err
    make_source(
        policy, source.folder.parent, reward_function=lambda prompts, answers: [(one, *9 * [nothing])] * len(answers)
    ).next()
    assert "warning: only 10% of the scored mentions" in capsys.readouterr().err


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="multiple of batch_size"):
        PPOSettings(rollout_batch_size=10, batch_size=4, grad_accumulation_steps=1)
    with pytest.raises(UserError, match="gamma"):
        PPOSettings(gamma=1.5)
    loop = PPOSettings(rollout_batch_size=16, batch_size=4, grad_accumulation_steps=2, num_ppo_epochs=3, epochs=2).loop(100)
    assert loop.iters == 13 * 3 * 2
