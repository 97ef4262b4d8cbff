"""The critic of PPO: from the policy's final hidden state to the reward that is still to come."""

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float


class ValueHead(nn.Module):
    """V = w . state + b, starting at 0, in float32.

    The states are cut off from the gradient: the critic looks at the policy and does not pull at it.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.linear.weight = mx.zeros((1, width))
        self.linear.bias = mx.zeros((1,))

    def __call__(self, states: Float[mx.array, "n t e"]) -> Float[mx.array, "n t"]:
        return self.linear(mx.stop_gradient(states).astype(mx.float32))[..., 0]
