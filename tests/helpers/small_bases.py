"""The tiny model as users run larger ones: in bfloat16 and in 4 bits."""

import mlx.core as mx

from mlx_visalign.models.loading import quantize_language_model


def bf16(policy):
    policy.model.set_dtype(mx.bfloat16)
    return policy


def four_bit(policy):
    assert quantize_language_model(policy.model, 4, 64) == 3 * 7 + 2
    return policy
