"""The one shift and the one mask."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.inference.logprobs import sum_logps, token_logps

# SeVa spec, section 10. Labels [-100, -100, 1, 2, 0]: the first two positions are the prompt.
LOGITS = mx.array([[[2, 0, -1], [0, 1, 0], [0.5, 0.5, 3], [1, -1, 0], [0, 0, 0]]], dtype=mx.float32)
IDS = mx.array([[0, 0, 1, 2, 0]])
MASK = mx.array([[False, True, True, True]])  # of ids[:, 1:]


def test_masked_sum_is_the_specs():
    logps = token_logps(LOGITS, IDS)
    np.testing.assert_allclose(logps[0, 1:], [-0.551444714, -0.152008384, -0.407605964], atol=1e-6)
    assert sum_logps(logps, MASK).item() == pytest.approx(-1.111059063, abs=1e-6)


def test_a_forgotten_shift_would_show():
    unshifted = mx.take_along_axis(LOGITS - mx.logsumexp(LOGITS, axis=-1, keepdims=True), IDS[..., None], axis=-1)[0, 2:, 0]
    assert unshifted.sum().item() == pytest.approx(-5.158226638, abs=1e-6)


def test_what_is_masked_out_counts_for_nothing_even_if_infinite():
    logps = mx.array([[-mx.inf, -1.0, mx.nan, -2.0]])
    assert sum_logps(logps, mx.array([[False, True, False, True]])).item() == -3.0


def test_the_head_is_applied_after_the_shift():
    """The last state predicts nothing, so the head never sees it."""
    seen = []

    def head(states):
        seen.append(states.shape)
        return states @ mx.eye(3)

    np.testing.assert_allclose(token_logps(LOGITS, IDS, head), token_logps(LOGITS, IDS), atol=1e-6)
    assert seen == [(1, 4, 3)]


def test_is_float32_whatever_the_logits_are():
    """Large logits in half precision: the log-sum-exp must not be taken there."""
    logits = mx.array([[[60.0, 59.0, 0.0], [0.0, 0.0, 0.0]]])
    logps = token_logps(logits.astype(mx.bfloat16), IDS[:, :2])
    assert logps.dtype == mx.float32
    np.testing.assert_allclose(logps, token_logps(logits, IDS[:, :2]), atol=1e-6)
