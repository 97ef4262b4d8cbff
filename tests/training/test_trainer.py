"""The loop: its schedule and arithmetic against torch's, exact resume under stops and kills, and what must stop it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import make_training
from stopping import StopError, stop_at
from toy_training import LONG, SETTINGS, CountingSource, loss_of, make_groups, train, weights_of

from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.training.config import TrainSettings, schedule_factor
from mlx_visalign.training.trainer import fit
from mlx_visalign.utils.errors import UserError

TESTS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


# Schedule and arithmetic


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0),
        (1, 3.333333e-7),
        (3, 1e-6),
        (6, 2e-6),
        (50, 1.661456e-6),
        (87, 1.009637e-6),
        (120, 4.137751e-7),
        (168, 1.857296e-10),
    ],
)
def test_cosine_schedule_has_the_values_of_the_seva_spec(step, rate):
    assert 2e-6 * schedule_factor(TrainSettings(169, 2e-6), step) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]), ("constant", [0, 0.5, 1, 1, 1, 1])],
)
def test_other_schedules(schedule, factors):
    settings = TrainSettings(6, 1.0, schedule, warmup_ratio=0.2)
    assert [schedule_factor(settings, step) for step in range(6)] == factors


def test_a_schedule_without_warm_up_starts_at_its_peak():
    assert schedule_factor(TrainSettings(10, 1.0, warmup_ratio=0.0), 0) == 1


class Numbers(CountingSource):
    """Batch i is the gradients number i of make_training."""

    def next(self):
        self.index += 1
        return {name: mx.array(value) for name, value in make_training.gradient(self.index - 1).items()}


@pytest.mark.parametrize("schedule", make_training.SCHEDULES)
def test_updates_are_torch_s(tmp_path, schedule):
    groups = {name: nn.Module() for name in make_training.PEAKS}
    for name, value in make_training.start().items():
        groups[name].weight = mx.array(value)

    def loss(batch):
        return sum(mx.sum(groups[name].weight * batch[name]) for name in groups), {}

    settings = TrainSettings(
        iters=make_training.UPDATES,
        learning_rate=make_training.PEAKS["policy"],
        schedule=schedule,
        warmup_ratio=make_training.WARMUP,
        weight_decay=make_training.DECAY,
        grad_accumulation_steps=make_training.ACCUMULATION,
        max_grad_norm=make_training.MAX_NORM,
    )
    fit(groups, loss, Numbers(), settings, tmp_path, learning_rates={"value": make_training.PEAKS["value"]})
    expected = json.loads(make_training.FILE.read_text())[schedule]
    for name, module in groups.items():
        np.testing.assert_allclose(module.weight, expected[name], atol=2e-5)  # MLX corrects the bias in float32
    norms = [row["grad_norm"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(norms, expected["norms"], rtol=1e-5)
    assert min(norms) < make_training.MAX_NORM < max(norms)  # some updates were clipped and some were not


@pytest.mark.reference
@pytest.mark.parametrize("schedule", make_training.SCHEDULES)
def test_golden_updates_are_what_torch_makes_today(schedule):
    golden = json.loads(make_training.FILE.read_text())[schedule]
    for name, value in make_training.train_in_torch(schedule).items():
        np.testing.assert_allclose(value, golden[name], rtol=1e-6)


# What is trained and what is told


def test_only_trainable_weights_move_and_the_loss_falls(tmp_path):
    groups = make_groups()
    before = weights_of(groups)
    after = train(tmp_path, replace(SETTINGS, iters=40, learning_rate=0.05), groups=groups)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"policy.layers.1.weight", "policy.layers.1.bias", "value.weight", "value.bias"}
    losses = [row["train_loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_row_holds_the_mean_over_the_accumulated_batches(tmp_path):
    rows, source = [], CountingSource()
    train(tmp_path, replace(SETTINGS, iters=1), source=source, on_metrics=rows.append)
    groups, batches = make_groups(), CountingSource()
    losses, accuracies = zip(*[(x.item(), m["accuracy"].item()) for x, m in batch_losses(groups, batches)], strict=True)
    (row,) = rows
    assert row["train_loss"] == pytest.approx(sum(losses) / 2)
    assert row["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert row["tokens"] == 48
    assert row["tokens_per_second"] == pytest.approx(48 * row["iterations_per_second"])
    assert 0 < row["active_memory"] <= row["peak_memory"] < 1
    assert source.observed == [1]
    assert rows == read_metrics(tmp_path / "metrics.jsonl")


def batch_losses(groups, source):
    return [loss_of(groups)(source.next()) for _ in range(2)]


# Resume


@pytest.mark.parametrize("iteration", range(1, SETTINGS.iters + 1))
def test_a_stop_after_any_update_leaves_no_trace(tmp_path, undisturbed, iteration):
    with pytest.raises(StopError):
        train(tmp_path, on_metrics=stop_at(iteration))
    assert train(tmp_path) == undisturbed
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, SETTINGS.iters + 1))


def run_until_killed(folder: Path, rows: int) -> None:
    """Start the training in a process of its own and SIGKILL it some moment after its metrics have `rows` lines."""
    process = subprocess.Popen([sys.executable, TESTS / "toy_training.py", folder], env=environment())
    while process.poll() is None and len(read_metrics(folder / "metrics.jsonl")) < rows:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    process.kill()
    assert process.wait() == -signal.SIGKILL


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS.parent), "OPENBLAS_NUM_THREADS": "1"}


def test_kills_at_random_moments_leave_no_trace(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, TESTS / "toy_training.py", whole], env=environment(), check=True)
    for rows in (random.randint(1, 20), random.randint(30, 60), random.randint(70, 100)):
        run_until_killed(killed, rows)
    subprocess.run([sys.executable, TESTS / "toy_training.py", killed], env=environment(), check=True)
    last = f"checkpoints/step-{LONG.iters:07d}"
    for file in ("policy", "value", "policy.optimizer", "value.optimizer"):
        name = f"{last}/{file}.safetensors"
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert [row["iteration"] for row in read_metrics(killed / "metrics.jsonl")] == list(range(1, LONG.iters + 1))


def test_ctrl_c_finishes_the_update_and_saves_it(tmp_path, undisturbed):
    def press(row):
        if row["iteration"] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_metrics=press)
    assert (tmp_path / "checkpoints/step-0000006").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(tmp_path) == undisturbed


def test_a_finished_training_is_only_loaded(tmp_path, undisturbed, capsys):
    train(tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    source = CountingSource()
    assert train(tmp_path, source=source) == undisturbed
    assert source.index == SETTINGS.iters * SETTINGS.grad_accumulation_steps
    assert source.observed == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    assert "already done at update 12 of 12" in capsys.readouterr().err


def test_how_often_to_save_may_change_between_two_runs(tmp_path, undisturbed):
    with pytest.raises(StopError):
        train(tmp_path, on_metrics=stop_at(7))
    assert train(tmp_path, replace(SETTINGS, save_every=1)) == undisturbed


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"settings": replace(SETTINGS, learning_rate=0.02)}, "learning_rate is 0.02 now"),
        ({"learning_rates": {"value": 0.1}}, "learning_rates"),
        ({"depends_on": {"beta": 0.5}}, r"beta is 0\.5 now, but .*state\.json was written with 0\.1"),
    ],
)
def test_checkpoints_of_other_settings_are_refused(tmp_path, changed, words):
    train(tmp_path, depends_on={"beta": 0.1})
    with pytest.raises(UserError, match=words):
        train(tmp_path, **{"depends_on": {"beta": 0.1}, **changed})


def test_checkpoints_of_other_weights_are_refused(tmp_path):
    train(tmp_path)
    groups = make_groups()
    groups["value"] = nn.Linear(6, 6, bias=False)
    with pytest.raises(UserError, match="does not match the weights"):
        train(tmp_path, groups=groups)


# What must stop it


class Poisoned(CountingSource):
    """The third batch gives a NaN, the first time; so the second batch of the second update is the culprit."""

    def next(self):
        batch = super().next()
        if self.index == 4:
            batch.x = batch.x * float("inf")
        return batch


def test_nan_stops_before_the_update_and_names_the_records(tmp_path):
    groups = make_groups()
    after_one_update = {}

    def keep(row):
        after_one_update.update(weights_of(groups))

    with pytest.raises(UserError, match=r"Update 2: .*nan.* on the records record-4\. No weight was changed"):
        train(tmp_path, groups=groups, source=Poisoned(), on_metrics=keep)
    assert weights_of(groups) == after_one_update


def test_a_gradient_that_overflows_stops_it_though_the_loss_is_finite(tmp_path):
    groups = {"value": nn.Linear(6, 6)}

    def loss(batch):
        return mx.sum(mx.sqrt(groups["value"](batch.x) * 0)), {}  # 0, and its slope at 0 has no end

    with pytest.raises(UserError, match=r"the loss is 0\.0 and the gradient norm nan on the records record-1"):
        train(tmp_path, groups=groups, loss=loss)


def test_trained_weights_must_be_float32(tmp_path):
    groups = make_groups()
    groups["value"].set_dtype(mx.bfloat16)
    with pytest.raises(UserError, match=r"float32, but value\.weight is .*bfloat16"):
        train(tmp_path, groups=groups)


def test_a_frozen_group_is_refused(tmp_path):
    groups = make_groups()
    groups["value"].freeze()
    with pytest.raises(UserError, match="nothing to train in value"):
        train(tmp_path, groups=groups)


@pytest.mark.parametrize(
    "setting", [{"iters": 0}, {"learning_rate": 0.0}, {"warmup_ratio": 1.5}, {"grad_accumulation_steps": 0}]
)
def test_settings_out_of_range_are_named(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        replace(SETTINGS, **setting)
