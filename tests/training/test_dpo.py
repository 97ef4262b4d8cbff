"""Preference training on the prefix cache: exact start, exact resume, order by seed, and less memory than plain forwards."""

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from random_policy import random_policy
from stopping import StopError, stop_at

from mlx_visalign.data.records import Pair
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.policy import load
from mlx_visalign.models.lora import LoRASettings, adapter_at
from mlx_visalign.training.dpo import (
    PairSource,
    PreferenceSettings,
    Watch,
    pair_batch,
    pair_logps,
    preference_loss,
    reward_accuracy,
    train_on_pairs,
    with_reference,
)
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import build
from mlx_visalign.utils.tolerances import SAME_SUM

SETTINGS = PreferenceSettings(batch_size=2, epochs=4, learning_rate=2e-3, lora=LoRASettings(rank=4), save_every=2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        chosen = "A small red circle at the top." + " A large blue star." * index
        made.append(Pair(str(index), (str(folder / f"{index}.png"),), "Describe this image.", chosen, "A white cross."))
    return with_reference(random_policy(), made)


def weights(policy):
    return dict(tree_flatten(policy.model.trainable_parameters()))


def test_the_first_loss_is_ln_2(pairs):
    policy = random_policy()
    policy.attach(LoRASettings(rank=4), seed=0)
    loss, metrics = preference_loss(policy, PreferenceSettings())(pair_batch(policy, pairs))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["margin"].item() == pytest.approx(0, abs=1e-5)
    lengths = [[len(policy.response_ids(text)) for text in (pair.chosen, pair.rejected)] for pair in pairs]
    assert metrics["tokens"].item() == np.sum(lengths)
    assert metrics["chosen_length"].item() == pytest.approx(np.mean(lengths, axis=0)[0])


def test_the_chosen_answers_own_likelihood_is_the_mean_over_their_tokens(pairs):
    policy = random_policy()
    policy.attach(LoRASettings(rank=4), seed=0)
    batch = pair_batch(policy, pairs)
    loss, metrics = preference_loss(policy, PreferenceSettings(rpo_alpha=0.5))(batch)
    nll = -sum(row["chosen"] for row in batch.reference_logps) / sum(len(chosen) for chosen, _ in batch.responses)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * nll, rel=1e-5)
    assert metrics["dpo_loss"].item() == pytest.approx(math.log(2), abs=1e-6)


def test_training_raises_chosen_above_rejected(pairs, tmp_path):
    policy = random_policy()
    train_on_pairs(policy, pairs, SETTINGS, tmp_path, seed=0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 10 and rows[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    found = reward_accuracy(policy, pairs, beta=0.1, batch=2)
    assert found["accuracy"] == 1 and found["margin"] > 0.2 and found["pairs"] == 5
    with adapter_at(policy.model, 0):
        assert reward_accuracy(policy, pairs, beta=0.1, batch=2)["margin"] == pytest.approx(0, abs=1e-5)


def test_stopped_and_rerun_is_bit_identical(pairs, tmp_path):
    whole = random_policy()
    train_on_pairs(whole, pairs, SETTINGS, tmp_path / "whole", seed=0)

    with pytest.raises(StopError):
        train_on_pairs(random_policy(), pairs, SETTINGS, tmp_path / "stopped", seed=0, on_metrics=stop_at(5))
    resumed = random_policy()
    train_on_pairs(resumed, pairs, SETTINGS, tmp_path / "stopped", seed=0)
    for name, array in weights(whole).items():
        assert mx.array_equal(array, weights(resumed)[name]), name


def test_another_beta_in_the_same_folder_is_refused(pairs, tmp_path):
    train_on_pairs(random_policy(), pairs, SETTINGS, tmp_path, seed=0)
    with pytest.raises(UserError, match="beta"):
        train_on_pairs(random_policy(), pairs, replace(SETTINGS, beta=0.2), tmp_path, seed=0)


def test_every_pair_comes_once_an_epoch_in_an_order_of_its_own(pairs):
    source = PairSource(random_policy(), pairs, batch_size=2, seed=3)
    epochs = [[id for _ in range(3) for id in source.next().ids] for _ in range(3)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = PairSource(random_policy(), pairs, batch_size=2, seed=3)
    again.restore({"taken": 3})
    assert [id for _ in range(3) for id in again.next().ids] == epochs[1]


def test_no_pairs_is_said(tmp_path):
    with pytest.raises(UserError, match="no pairs"):
        train_on_pairs(random_policy(), [], SETTINGS, tmp_path, seed=0)


def test_a_pair_without_a_reference_is_named_before_the_first_update(pairs, tmp_path):
    with pytest.raises(UserError, match="The pair 4 lacks reference_logps"):
        train_on_pairs(
            random_policy(), [*pairs[:4], replace(pairs[4], reference_logps=None)], SETTINGS, tmp_path / "out", seed=0
        )
    assert not (tmp_path / "out").exists()


def test_reference_is_the_policy_as_it_is(pairs):
    policy = random_policy()
    logps = np.array(pair_logps(policy, pair_batch(policy, pairs)))
    np.testing.assert_allclose(logps, [[*pair.reference_logps.values()] for pair in pairs], atol=SAME_SUM)


def test_what_looks_wrong_is_said_once(capsys):
    watch = Watch()
    row = {"dpo_loss": 0.9, "accuracy": 0.8, "chosen_reward": 0.0, "chosen_length": 10, "rejected_length": 11}
    for iteration in range(1, 102):
        watch(row | {"iteration": iteration})
    shown = capsys.readouterr().err
    assert shown.count("warning:") == 1 and "not ln 2" in shown


@pytest.mark.parametrize(
    "bad", [{"beta": 0.0}, {"rpo_alpha": -1.0}, {"epochs": 0.0}, {"learning_rate": 0.0}, {"warmup_ratio": 2.0}]
)
def test_bad_settings_are_refused_at_once(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        PreferenceSettings(**bad)


# -- other losses -----------------------------------------------------------------------------------------------------

MDPO = replace(SETTINGS, loss_type="mdpo")


@pytest.fixture(scope="module")
def damaged_pairs(pairs):
    return with_reference(random_policy(), pairs, MDPO.loss.reads, seed=0)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "robust"])
def test_every_loss_begins_at_its_start_and_goes_down(pairs, tmp_path, loss_type):
    settings = replace(SETTINGS, loss_type=loss_type, noise=0.1 if loss_type == "robust" else 0.0)
    train_on_pairs(random_policy(), pairs, settings, tmp_path, seed=0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0]["dpo_loss"] == pytest.approx(settings.loss.start, rel=1e-5)
    assert rows[-1]["dpo_loss"] < rows[0]["dpo_loss"] and rows[-1]["margin"] > 0.2


def test_mdpo_begins_at_3_ln_2_and_learns_to_look(damaged_pairs, tmp_path):
    policy = random_policy()
    train_on_pairs(policy, damaged_pairs, MDPO, tmp_path, seed=0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0]["train_loss"] == pytest.approx(3 * math.log(2), abs=3e-5)
    assert rows[0]["loss_at_start"] == pytest.approx(3 * math.log(2))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert reward_accuracy(policy, damaged_pairs, beta=0.1, batch=2)["accuracy"] == 1


def test_mdpo_on_the_tiny_model_begins_at_3_ln_2(pairs):
    policy = load("tiny")
    scored = with_reference(policy, pairs, MDPO.loss.reads)
    policy.attach(LoRASettings(rank=4), seed=0)
    loss, metrics = preference_loss(policy, MDPO)(pair_batch(policy, scored))
    assert loss.item() == pytest.approx(3 * math.log(2), abs=1e-5)
    assert metrics["corrupted_chosen_reward"].item() == pytest.approx(0, abs=1e-5)


def test_mdpo_stopped_and_rerun_is_bit_identical(damaged_pairs, tmp_path):
    whole, resumed = random_policy(), random_policy()
    train_on_pairs(whole, damaged_pairs, MDPO, tmp_path / "whole", seed=0)
    with pytest.raises(StopError):
        train_on_pairs(random_policy(), damaged_pairs, MDPO, tmp_path / "stopped", seed=0, on_metrics=stop_at(5))
    train_on_pairs(resumed, damaged_pairs, MDPO, tmp_path / "stopped", seed=0)
    for name, array in weights(whole).items():
        assert mx.array_equal(array, weights(resumed)[name]), name


def test_a_damaged_image_is_a_small_part_of_it_by_seed_and_pair(tmp_path):
    pixels = np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")

    def seen(seed, id):
        pair = Pair(id, (str(tmp_path / "a.png"),), "Describe.", "A cat.", "A dog.")
        (image,) = pair_batch(random_policy(), [pair], seed).pictures("corrupted")
        return image.size, image.tobytes()

    shares = [width * height / (60 * 80) for (width, height), _ in (seen(0, str(i)) for i in range(50))]
    assert 0.005 < min(shares) < 0.05 and 0.15 < max(shares) < 0.21
    assert seen(0, "a") == seen(0, "a") != seen(1, "a") and seen(0, "a") != seen(0, "b")


def test_what_else_a_loss_measures_against_is_named(pairs, tmp_path):
    with pytest.raises(UserError, match="The pair 0 lacks reference_logps of corrupted_chosen"):
        train_on_pairs(random_policy(), pairs, MDPO, tmp_path, seed=0)


def test_a_pairs_own_smoothing_is_refused_by_a_loss_that_knows_none(pairs, tmp_path):
    with pytest.raises(UserError, match=r"The pair 0 has a label_smoothing of 0\.1, which the loss hinge does not support"):
        train_on_pairs(
            random_policy(), [replace(pairs[0], label_smoothing=0.1)], replace(SETTINGS, loss_type="hinge"), tmp_path, seed=0
        )


def test_a_pairs_own_smoothing_goes_before_the_settings(pairs):
    policy = random_policy()
    policy.attach(LoRASettings(rank=4), seed=0)
    unlike = [replace(pair, reference_logps={"chosen": 0.0, "rejected": 0.0}) for pair in pairs]

    def loss(smoothing, own):
        some = [replace(pair, label_smoothing=own) for pair in unlike]
        return preference_loss(policy, PreferenceSettings(label_smoothing=smoothing))(pair_batch(policy, some))[0].item()

    assert loss(0.3, 0.1) == loss(0.0, 0.1) == loss(0.1, 0.0) != loss(0.3, 0.0)


def test_another_loss_in_the_same_folder_is_refused(pairs, tmp_path):
    train_on_pairs(random_policy(), pairs, SETTINGS, tmp_path, seed=0)
    with pytest.raises(UserError, match="loss_type"):
        train_on_pairs(random_policy(), pairs, replace(SETTINGS, loss_type="hinge"), tmp_path, seed=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"noise": 0.1}, "noise is 0.1; it must be 0 unless loss_type is robust"),
        ({"noise": 0.1, "loss_type": "mdpo"}, "noise is 0.1; it must be 0 unless loss_type is robust"),
        ({"noise": 0.5, "loss_type": "robust"}, "noise is 0.5; it must be at least 0 and below 0.5"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing is 0.1; it must be 0 unless loss_type is sigmoid"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1; it must be at least 0 and below 0.5"),
    ],
)
def test_settings_that_do_nothing_or_are_out_of_range_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        PreferenceSettings(**bad)


def test_a_loss_nobody_knows_is_refused():
    with pytest.raises(UserError, match="loss_type must be one of sigmoid, ipo, hinge, robust, mdpo, got the text 'kto'"):
        build(PreferenceSettings, {"loss_type": "kto"}, "recipe")
