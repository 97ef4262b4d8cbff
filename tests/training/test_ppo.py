"""PPO's formulas: hand-worked numbers, padding that changes nothing, and TRL's own code where it can be run."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.training import ppo_losses as ppo

TOKEN_REWARDS = np.array([[0, 0, 0.5, 0, -0.75, 0]])
OLD = np.array([[-0.10, -1.20, -0.40, -0.05, -2.00, -0.30]])
REFERENCE = np.array([[-0.12, -1.00, -0.50, -0.05, -1.50, -0.35]])
VALUES = np.array([[0, 0.05, 0.10, -0.05, -0.10, 0]])
NEW = np.array([[-0.08, -1.50, -0.20, -0.05, -2.40, -0.10]])
NEW_VALUES = np.array([[0.10, 0, 0.40, -0.30, -0.60, 0.05]])
ALL = np.ones((1, 6), dtype=bool)

REWARDS = [[-0.001, 0.010, 0.495, 0, -0.725, -0.0025]]
ADVANTAGES = [[-0.136507109, -0.195270641, -0.268705938, -0.646006250, -0.627375000, -0.002500000]]
RETURNS = [[-0.136507109, -0.145270641, -0.168705938, -0.696006250, -0.727375000, -0.002500000]]
WHITENED = [[0.663114, 0.441988, 0.165652, -1.254122, -1.184013, 1.167380]]
LOSSES = [-0.676510, -0.327433, -0.198783, 1.254122, 0.947210, -1.400856]


def after_the_end(values):
    return np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)


def padded(array, value=0):
    """The same row above a longer one of other numbers, both padded to 9."""
    other = np.full((1, 9), 0.3, dtype=array.dtype)
    return np.concatenate([np.pad(array, ((0, 0), (0, 3)), constant_values=value), other])


def test_reward_minus_kl():
    np.testing.assert_allclose(ppo.with_kl(TOKEN_REWARDS, OLD, REFERENCE, kl_coef=0.05), REWARDS, atol=1e-12)


def test_advantages_and_returns():
    found = ppo.advantages(np.array(REWARDS), after_the_end(VALUES), ALL, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(found, ADVANTAGES, atol=1e-8)
    np.testing.assert_allclose(found + VALUES, RETURNS, atol=1e-8)


def test_without_a_critic_the_advantage_is_the_reward_to_come():
    found = ppo.advantages(np.array(REWARDS), np.zeros((1, 7)), ALL, gamma=1.0, lam=1.0)
    np.testing.assert_allclose(found, [[-0.2235, -0.2225, -0.2325, -0.7275, -0.7275, -0.0025]], atol=1e-12)
    np.testing.assert_allclose(ppo.advantages(np.array(REWARDS), np.zeros((1, 7)), ALL, gamma=0.7, lam=0.0), REWARDS)


def test_gamma_worked_by_hand():
    found = ppo.advantages(np.array([[1.0, 0, 2.0]]), np.array([[0.5, 0.5, 0.5, 0]]), np.ones((1, 3), dtype=bool), 0.5, 0.5)
    # deltas 1 + .25 - .5, 0 + .25 - .5, 2 - .5; backwards with a factor of .25
    np.testing.assert_allclose(found, [[0.75 + 0.25 * 0.125, -0.25 + 0.25 * 1.5, 1.5]])


def test_an_answer_cut_off_counts_on_what_was_to_come():
    values = np.array([[0.0, 0.0, 0.4]])
    assert ppo.advantages(np.zeros((1, 2)), values, np.ones((1, 2), dtype=bool), 0.5, 1.0).tolist() == [[0.1, 0.2]]


def test_padding_changes_no_advantage():
    mask = padded(ALL, value=False)
    rewards, values = padded(np.array(REWARDS), value=7.0), np.pad(padded(VALUES), ((0, 0), (0, 1)))
    found = ppo.advantages(rewards, values, mask, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(found[0, :6], ADVANTAGES[0], atol=1e-8)
    assert (found[0, 6:] == 0).all()


def test_whitening():
    np.testing.assert_allclose(ppo.whiten(np.array(ADVANTAGES), ALL), WHITENED, atol=1e-6)
    wide = np.concatenate([np.array(ADVANTAGES), [[9.0, 9.0]]], axis=1)
    mask = np.arange(8)[None] < 6
    np.testing.assert_allclose(ppo.whiten(wide, mask), [[*WHITENED[0], 0, 0]], atol=1e-6)


def policy_loss(new, mask=ALL, old=OLD, whitened=WHITENED):
    arrays = [mx.array(np.array(array, dtype=np.float32)) for array in (new, old, whitened)]
    loss, metrics = ppo.policy_loss(*arrays, mx.array(mask), clip=0.2)
    return loss.item(), {name: value.item() for name, value in metrics.items()}


def test_the_clipped_policy_loss():
    loss, metrics = policy_loss(NEW)
    assert loss == pytest.approx(-0.067041610, abs=1e-6) == pytest.approx(np.mean(LOSSES), abs=1e-6)
    assert metrics["clip_fraction"] == 0.5
    assert metrics["approx_kl"] == pytest.approx((OLD - NEW).mean(), abs=1e-6)
    assert metrics["ratio_off"] == pytest.approx(1 - 0.670320, abs=1e-6)


def test_before_the_first_update_nothing_is_off():
    loss, metrics = policy_loss(OLD)
    assert loss == pytest.approx(0, abs=1e-6) and metrics == {"clip_fraction": 0, "approx_kl": 0, "ratio_off": 0}


def test_padding_changes_no_loss():
    mask = np.concatenate([np.pad(ALL, ((0, 0), (0, 2))), np.zeros((1, 8), dtype=bool)])
    new, old, whitened = (
        np.concatenate([np.pad(np.array(row), ((0, 0), (0, 2)), constant_values=junk), np.full((1, 8), junk)])
        for row, junk in ((NEW, 90.0), (OLD, -3.0), (WHITENED, 5.0))
    )
    loss, metrics = policy_loss(new, mask, old, whitened)
    assert loss == pytest.approx(-0.067041610, abs=1e-6) and metrics["clip_fraction"] == 0.5
    assert metrics["ratio_off"] < 0.34


def test_the_clipped_value_loss():
    arrays = [mx.array(np.array(array, dtype=np.float32)) for array in (NEW_VALUES, VALUES, RETURNS)]
    loss = ppo.value_loss(*arrays, mx.array(ALL), clip=0.2).item()
    assert loss == pytest.approx(0.065399403, abs=1e-7)
    assert policy_loss(NEW)[0] + 0.1 * loss == pytest.approx(-0.060501670, abs=1e-6)


@pytest.mark.reference
def test_losses_and_gradients_as_in_torch():
    """TRL 1.16 has no PPO trainer any more, so what its last one computed is written out here."""
    import torch

    rng = np.random.default_rng(0)
    mask = np.arange(9) < rng.integers(3, 10, (5, 1))
    new, old, weights, returns = (rng.normal(size=(5, 9)).astype(np.float32) * 0.5 for _ in range(4))

    def by_torch(new):
        there = torch.tensor(mask)
        ratio, weight = torch.exp(new - torch.tensor(old)), torch.tensor(weights)
        first = torch.max(-weight * ratio, -weight * torch.clamp(ratio, 0.8, 1.2))[there].mean()
        near = torch.clamp(new, torch.tensor(old) - 0.2, torch.tensor(old) + 0.2)
        second = torch.max((new - torch.tensor(returns)) ** 2, (near - torch.tensor(returns)) ** 2)[there].mean()
        return first + 0.1 * 0.5 * second

    def by_us(new):
        first, _ = ppo.policy_loss(new, mx.array(old), mx.array(weights), mx.array(mask), 0.2)
        return first + 0.1 * ppo.value_loss(new, mx.array(old), mx.array(returns), mx.array(mask), 0.2)

    theirs = torch.tensor(new, requires_grad=True)
    loss = by_torch(theirs)
    loss.backward()
    ours, gradient = mx.value_and_grad(by_us)(mx.array(new))
    assert ours.item() == pytest.approx(loss.item(), abs=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)
