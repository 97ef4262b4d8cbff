"""PPO's critic on the policy's final hidden states."""

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float


class ValueHead(nn.Module):
    """Linear value head: the expected remaining reward.

    V = w . state + b in float32, initialised to 0. No gradient reaches the states, so the critic does not train the policy.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.linear.weight = mx.zeros((1, width))
        self.linear.bias = mx.zeros((1,))

    def __call__(self, states: Float[mx.array, "n t e"]) -> Float[mx.array, "n t"]:
        return self.linear(mx.stop_gradient(states).astype(mx.float32))[..., 0]
