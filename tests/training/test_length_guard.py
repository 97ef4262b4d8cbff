"""The length guard: measured now and then, logged always, and it changes nothing that is trained."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from random_policy import random_policy
from stopping import StopError, stop_at

from mlx_visalign.data.records import Pair
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs, with_reference
from mlx_visalign.training.length_guard import LengthGuard, measurements
from mlx_visalign.utils.errors import UserError

SETTINGS = PreferenceSettings(batch_size=1, iters=12, learning_rate=2e-2, rpo_alpha=1, lora=LoRASettings(rank=4), save_every=4)
QUESTION = "Describe this image."
BASE = 40.0


class Lengths:
    """Lengths of answers as told: the first measured, then the base's, then all others."""

    def __init__(self, *now):
        self.told = [now[0], BASE, *now[1:]]
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return self.told[self.asked - 1]


def guard(lengths, updates=12, min_share=0.75, policy=None):
    return LengthGuard(policy or random_policy(), lengths, updates, min_share, Path("runs/mine"))


@pytest.mark.parametrize(("updates", "due"), [(4, [4]), (25, [10, 20, 25]), (300, [*range(30, 301, 30)])])
def test_it_measures_after_every_tenth_but_no_ten_updates_and_at_the_end(updates, due):
    measured = guard(lambda: BASE, updates)
    calls = []
    measured.mean_tokens = lambda: calls.append(update) or BASE
    for update in range(1, updates + 1):
        measured.measure(update)
    assert sorted(set(calls)) == due
    assert len(calls) == len(due) + 1 == measurements(updates)  # the base once


def test_between_two_measurements_it_tells_the_last():
    lengths = Lengths(38.0, 36.0)
    watched = guard(lengths, 25)
    told = [watched.measure(update) for update in range(1, 26) if update < 25]
    assert told == [1.0] * 9 + [0.95] * 10 + [0.9] * 5


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    image = tmp_path_factory.mktemp("images") / "grey.png"
    Image.new("RGB", (28, 28), "grey").save(image)
    sides = ("A small red circle at the top.", "A white cross.")
    return with_reference(random_policy(), [Pair(str(n), (str(image),), QUESTION, *sides) for n in range(3)])


def answers_of(policy, image):
    """What a run's guard asks, of one image."""

    def mean_tokens():
        prefix = policy.prefill(policy.image_features([image]), [policy.prompt_ids(QUESTION)])
        return len(policy.generate(prefix, Sampling(24))[0].ids)

    return mean_tokens


def train(pairs, folder, lengths=None, min_share=0.0, on_metrics=None):
    """Weights and metrics of a training; `lengths` None: the policy's own answers are measured."""
    policy = random_policy()
    lengths = lengths or answers_of(policy, pairs[0].images[0])
    train_on_pairs(policy, pairs, SETTINGS, folder, 0, on_metrics, guard(lengths, min_share=min_share, policy=policy))
    return dict(tree_flatten(policy.model.trainable_parameters())), read_metrics(folder / "metrics.jsonl")


def test_a_guarded_training_ends_with_the_same_weights_stopped_or_not(pairs, tmp_path):
    plain = random_policy()
    train_on_pairs(plain, pairs, SETTINGS, tmp_path / "plain", seed=0)
    weights, rows = train(pairs, tmp_path / "whole")
    with pytest.raises(StopError):
        train(pairs, tmp_path / "stopped", on_metrics=stop_at(11))
    again, resumed = train(pairs, tmp_path / "stopped")
    for name, array in tree_flatten(plain.model.trainable_parameters()):
        assert mx.array_equal(array, weights[name]) and mx.array_equal(array, again[name]), name
    assert [row["answer_length"] for row in resumed] == [row["answer_length"] for row in rows]
    assert len(rows) == 12 and rows[-1]["answer_length"] != 1


def test_a_measurement_survives_in_the_checkpoint(pairs, tmp_path):
    with pytest.raises(StopError):
        train(pairs, tmp_path, Lengths(36.0), on_metrics=stop_at(11))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["answer_length"] == 0.9
    _, rows = train(pairs, tmp_path, Lengths(36.0, 34.0))  # from update 8, so update 10 is made and measured again
    assert [row["answer_length"] for row in rows] == [1.0] * 9 + [0.9] * 2 + [0.85]


def test_shorter_answers_are_warned_of_once(pairs, tmp_path, capsys):
    train(pairs, tmp_path, Lengths(35.2, 34.0), min_share=0.75)
    assert capsys.readouterr().err.count("Descriptions have become 0.88 times as long") == 1


def test_answers_that_are_too_short_stop_it_and_it_may_be_told_to_go_on(pairs, tmp_path):
    with pytest.raises(UserError, match=r"fell from 40\.0 to 29\.0 tokens") as stopped:
        train(pairs, tmp_path, Lengths(29.0), min_share=0.75)
    assert "--reuse runs/mine" in str(stopped.value) and "min_share=0" in str(stopped.value)
    assert [row["answer_length"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0] * 9 + [0.725]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000004", "step-0000008"]
    _, rows = train(pairs, tmp_path, Lengths(29.0, 28.0), min_share=0.0)
    assert [row["answer_length"] for row in rows] == [1.0] * 9 + [0.725] * 2 + [0.7]


def test_a_checkpoint_from_before_there_was_a_guard_goes_on(pairs, tmp_path):
    policy = random_policy()
    with pytest.raises(StopError):
        train_on_pairs(policy, pairs, SETTINGS, tmp_path, 0, stop_at(9))
    weights, _ = train(pairs, tmp_path, Lengths(40.0, 40.0))
    whole, _ = train(pairs, tmp_path / "whole", Lengths(40.0, 40.0))
    assert all(mx.array_equal(array, whole[name]) for name, array in weights.items())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(UserError, match=r"min_share is .*; it must be from 0 to 1"):
        replace(SETTINGS, min_share=share)
