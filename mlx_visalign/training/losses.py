"""Losses: pure functions of arrays, each with its formula and source."""

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float


def dpo_loss(
    policy_chosen: Float[mx.array, "b"],
    policy_rejected: Float[mx.array, "b"],
    reference_chosen: Float[mx.array, "b"],
    reference_rejected: Float[mx.array, "b"],
    beta: float,
    label_smoothing: float | Float[mx.array, "b"] = 0.0,
) -> tuple[Float[mx.array, ""], dict[str, Float[mx.array, ""]]]:
    """Direct preference optimisation, from summed log-probabilities in nats of the answers of b pairs.

        h    = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = mean of -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)

    with e = `label_smoothing` in [0, 0.5), the probability that a preference is the wrong way round (one for all pairs
    or one each). The metrics are means over the pairs: the rewards beta (policy - reference) of chosen and rejected,
    their difference `margin`, and `accuracy`, the share of pairs whose chosen reward is the higher (a tie is not).

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences", equation 3 (conservative DPO).
    """
    chosen_reward = beta * (policy_chosen - reference_chosen)
    rejected_reward = beta * (policy_rejected - reference_rejected)
    margin = chosen_reward - rejected_reward
    # nn.log_sigmoid is stable: -logaddexp(0, -x).
    losses = -(1 - label_smoothing) * nn.log_sigmoid(margin) - label_smoothing * nn.log_sigmoid(-margin)
    metrics = {
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
        "margin": margin,
        "accuracy": (margin > 0).astype(mx.float32),
    }
    return losses.mean(), {name: value.mean() for name, value in metrics.items()}
