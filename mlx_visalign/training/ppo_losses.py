"""PPO losses over tokens, as pure functions of arrays.

Rewards and advantages, which are fixed once a rollout is sampled, are NumPy arrays; what is differentiated is MLX. Rows are
answers, right-padded; `mask` is true for the tokens that count. Source of every formula: Schulman et al. 2017 (arXiv
1707.06347) and 2016 (1506.02438, advantages), in the form of TRL's trl/experimental/ppo/ppo_trainer.py.
"""

import mlx.core as mx
import numpy as np
from jaxtyping import Bool, Float


def with_kl(
    token_rewards: Float[np.ndarray, "n t"],
    logps: Float[np.ndarray, "n t"],
    reference_logps: Float[np.ndarray, "n t"],
    kl_coef: float,
) -> Float[np.ndarray, "n t"]:
    """Token rewards minus the KL penalty.

    r_t = reward_t - kl_coef (logp_t - reference_logp_t), with the k1 estimate of the KL divergence at every token.
    """
    return token_rewards - kl_coef * (logps - reference_logps)


def advantages(
    rewards: Float[np.ndarray, "n t"],
    values: Float[np.ndarray, "n t+1"],
    mask: Bool[np.ndarray, "n t"],
    gamma: float,
    lam: float,
) -> Float[np.ndarray, "n t"]:
    """Generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}

    `values[:, t]` is V before token t. The value after an answer's last token counts too: it is 0 if the answer ended, and
    the critic's prediction if it was cut off. Zero outside the mask. With V = 0, lam = 1 gives the sum of future rewards
    and lam = 0 the token's own reward.
    """
    result = np.zeros_like(rewards)
    following = np.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * values[:, t + 1] - values[:, t]
        following = np.where(mask[:, t], delta + gamma * lam * following, 0.0)
        result[:, t] = following
    return result


def whiten(values: Float[np.ndarray, "n t"], mask: Bool[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
    """Masked values scaled to mean 0 and variance 1.

    (x - mean) / sqrt(var + 1e-8) over the mask, with Bessel's correction of the variance; 0 outside the mask.
    """
    counted = values[mask]
    scale = np.sqrt(counted.var(ddof=1) + 1e-8)
    return np.where(mask, (values - counted.mean()) / scale, 0.0)


def policy_loss(
    logps: Float[mx.array, "n t"],
    old_logps: Float[mx.array, "n t"],
    advantages: Float[mx.array, "n t"],
    mask: Bool[mx.array, "n t"],
    clip: float,
) -> tuple[Float[mx.array, ""], dict[str, Float[mx.array, ""]]]:
    """PPO's clipped policy loss, with its metrics.

    The mean over tokens of max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), with rho = exp(logp - old_logp).

    Metrics: `clip_fraction`, the share of tokens where the clipped term is larger; `approx_kl`, the mean of
    old_logp - logp, in nats per token; `ratio_off`, the largest |rho - 1|, which is 0 before a rollout's first update.
    """
    change = mx.where(mask, logps - old_logps, 0.0)
    ratio = mx.exp(change)
    free, clipped = -advantages * ratio, -advantages * mx.clip(ratio, 1 - clip, 1 + clip)
    metrics = {
        "clip_fraction": masked_mean((clipped > free).astype(mx.float32), mask),
        "approx_kl": masked_mean(-change, mask),
        "ratio_off": mx.abs(ratio - 1).max(),
    }
    return masked_mean(mx.maximum(free, clipped), mask), metrics


def value_loss(
    values: Float[mx.array, "n t"],
    old_values: Float[mx.array, "n t"],
    returns: Float[mx.array, "n t"],
    mask: Bool[mx.array, "n t"],
    clip: float,
) -> Float[mx.array, ""]:
    """PPO's clipped value loss.

    Half the mean over tokens of max((V - R)^2, (V_clipped - R)^2), with V_clipped within `clip` of the old value.
    """
    clipped = mx.clip(values, old_values - clip, old_values + clip)
    return 0.5 * masked_mean(mx.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def masked_mean(values: Float[mx.array, "n t"], mask: Bool[mx.array, "n t"]) -> Float[mx.array, ""]:
    """Mean over the mask."""
    return mx.where(mask, values, 0.0).sum() / mask.sum()
