import json
import math
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_visalign.training.losses import dpo_loss

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())["cases"]


def loss_and_gradient(rows, beta, label_smoothing=0.0):
    """The loss, its gradient to the policy's log-probabilities (all chosen, then all rejected) and the metrics."""
    columns = list(mx.array(rows).T)

    def loss(policy_chosen, policy_rejected):
        return dpo_loss(policy_chosen, policy_rejected, *columns[2:], beta, label_smoothing)

    (value, metrics), gradients = mx.value_and_grad(loss, argnums=(0, 1))(*columns[:2])
    return value.item(), mx.concatenate(gradients).tolist(), {name: mean.item() for name, mean in metrics.items()}


def close(expected):
    return pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("row", "beta", "loss", "gradient", "rewards"),
    [
        # worked by hand in float64
        ((-12.5, -15.0, -13.0, -14.0), 0.1, 0.620957048, -0.046257015, (0.05, -0.1)),
        ((-30.0, -28.0, -31.0, -27.0), 0.1, 0.598138869, -0.045016600, (0.1, -0.1)),
        ((-9.0, -9.0, -9.0, -9.0), 0.1, 0.693147181, -0.05, (0.0, 0.0)),
        ((-12.5, -15.0, -13.0, -14.0), 0.5, 0.386871006, -0.160410650, (0.25, -0.5)),
        ((-100.0, -400.0, -120.0, -300.0), 0.1, 6.144193e-06, -6.144175e-07, (2.0, -10.0)),
        ((-42.0, -57.5, -44.0, -52.5), 0.1, 0.403186036, -0.0331812228, (0.2, -0.5)),
        ((-50.0, -40.0, -45.0, -44.0), 0.1, 1.241153839, -0.0710949503, (-0.5, 0.4)),
    ],
)
def test_one_pair(row, beta, loss, gradient, rewards):
    value, gradients, metrics = loss_and_gradient([row], beta)
    assert value == close(loss)
    assert gradients == close([gradient, -gradient])
    assert (metrics["chosen_reward"], metrics["rejected_reward"]) == close(rewards)
    assert metrics["margin"] == close(rewards[0] - rewards[1])
    assert metrics["accuracy"] == (rewards[0] > rewards[1])


def test_far_apart_pairs_neither_overflow_nor_vanish():
    value, gradients, _ = loss_and_gradient([(-9000.0, 0.0, 0.0, -9000.0)], 0.1)
    assert (value, gradients) == (close(1800.0), close([-0.1, 0.1]))


def test_smoothing_may_differ_between_pairs():
    rows = [(-12.5, -15.0, -13.0, -14.0), (-30.0, -28.0, -31.0, -27.0)]
    each = [loss_and_gradient([row], 0.1, smoothing)[0] for row, smoothing in zip(rows, (0.0, 0.3), strict=True)]
    assert loss_and_gradient(rows, 0.1, mx.array([0.0, 0.3]))[0] == close(sum(each) / 2)


def test_a_smoothed_loss_is_lowest_where_the_margin_says_how_sure_one_may_be():
    margin = math.log(0.7 / 0.3)
    assert loss_and_gradient([(margin, 0.0, 0.0, 0.0)], 1.0, 0.3)[1] == pytest.approx([0, 0], abs=1e-7)


def check(cases):
    for case in cases:
        loss, gradient, metrics = loss_and_gradient(case["logps"], case["beta"], case["label_smoothing"])
        assert loss == close(case["trl"]["loss"])
        assert gradient == pytest.approx(case["trl"]["gradient"], rel=1e-5, abs=1e-8)
        names = {"chosen_reward": "chosen", "rejected_reward": "rejected", "margin": "margins", "accuracy": "accuracies"}
        assert metrics == pytest.approx({ours: case["trl"][theirs] for ours, theirs in names.items()}, abs=1e-6)


def test_loss_gradient_and_metrics_are_those_trl_gave():
    check(GOLDEN)


@pytest.mark.reference
def test_loss_gradient_and_metrics_are_trls():
    from golden.make_losses import cases

    check(cases())
