import json
import math
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_visalign.training.losses import Scored, mdpo_loss, pair_loss, reward_metrics

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


def loss_and_gradient(rows, beta, rate=0.0, loss_type="sigmoid", lengths=None):
    """The loss, its gradient to the policy's log-probabilities (all chosen, then all rejected) and the metrics."""
    columns = list(mx.array(rows).T)
    tokens = mx.array(lengths or [[1, 1]] * len(rows), dtype=mx.float32)
    smoothing = mx.zeros(len(rows)) + rate
    noise = rate if loss_type == "robust" else 0.0

    def loss(*policy):
        rewards = {side: beta * (policy[i] - columns[i + 2]) for i, side in enumerate(("chosen", "rejected"))}
        pairs = Scored(rewards, tokens, smoothing)
        return pair_loss(loss_type, beta, noise).values(pairs).mean(), reward_metrics(pairs)

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


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust"])
def test_where_policy_and_reference_are_one_the_loss_is_its_start(loss_type, beta):
    value = loss_and_gradient([(-9.0, -30.0, -9.0, -30.0)], beta, 0.2, loss_type, [[4, 9]])[0]
    assert value == close(pair_loss(loss_type, beta, 0.2).start)


@pytest.mark.parametrize("rows", [[(-12.5, -15.0, -13.0, -14.0)], [(-50.0, -40.0, -45.0, -44.0)]])
def test_robust_is_unbiased_by_flips(rows):
    """Of true and flipped preferences at their rates, the mean is DPO's loss of the true ones."""
    flipped = [(row[1], row[0], row[3], row[2]) for row in rows]
    right, wrong = (loss_and_gradient(some, 0.1, 0.2, "robust")[0] for some in (rows, flipped))
    assert 0.8 * right + 0.2 * wrong == close(loss_and_gradient(rows, 0.1)[0])


def check(found):
    for case in found["cases"]:
        loss, gradient, metrics = loss_and_gradient(*(case[name] for name in ("logps", "beta", "rate", "loss_type", "lengths")))
        assert loss == close(case["trl"]["loss"])
        assert gradient == pytest.approx(case["trl"]["gradient"], rel=1e-5, abs=1e-8)
        names = {"chosen_reward": "chosen", "rejected_reward": "rejected", "margin": "margins", "accuracy": "accuracies"}
        assert metrics == pytest.approx({ours: case["trl"][theirs] for ours, theirs in names.items()}, abs=1e-6)
    mdpo = found["mdpo"]
    columns = list(mx.array(mdpo["changes"]).T)

    def loss(*changes):
        return mdpo_loss(*(mdpo["beta"] * change for change in changes)).mean()

    value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(*columns)
    assert value.item() == close(mdpo["torch"]["loss"])
    assert mx.concatenate(gradients).tolist() == pytest.approx(mdpo["torch"]["gradient"], rel=1e-5, abs=1e-8)


def test_losses_gradients_and_metrics_are_those_trl_and_torch_gave():
    assert {case["loss_type"] for case in GOLDEN["cases"]} == {"sigmoid", "ipo", "hinge", "robust"}
    check(GOLDEN)


@pytest.mark.reference
def test_losses_gradients_and_metrics_are_trls_and_torchs():
    from golden.make_losses import made

    check(made())
