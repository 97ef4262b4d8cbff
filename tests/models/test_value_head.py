"""The critic starts at 0, works in float32, and leaves the policy alone."""

import mlx.core as mx

from mlx_visalign.models.value_head import ValueHead


def test_it_starts_at_zero_and_in_float32():
    values = ValueHead(4)(mx.ones((2, 3, 4), dtype=mx.bfloat16))
    assert values.shape == (2, 3) and values.dtype == mx.float32 and not values.any()


def test_no_gradient_reaches_the_states():
    critic = ValueHead(4)
    critic.linear.weight = mx.ones((1, 4))
    assert not mx.grad(lambda states: critic(states).sum())(mx.ones((1, 2, 4))).any()
