"""Forward-diffusion noise on normalised pixels, SeVa's default augmentation.

Source: github Kevinz-code/SeVa, `data/step2/generate_with_aug.py` (arXiv 2404.10501).
"""

from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from jaxtyping import Float, Float64

from mlx_visalign.utils.errors import UserError

STEPS = 1000


class NoiseSchedule(NamedTuple):
    """Variances of the diffusion steps.

    `betas[t]`: noise variance added at step t; `alpha_bars[t] = prod_{i<=t} (1 - betas[i])`: signal variance left.
    """

    betas: Float64[np.ndarray, "1000"]
    alpha_bars: Float64[np.ndarray, "1000"]


@cache
def noise_schedule() -> NoiseSchedule:
    """Sigmoid noise schedule of 1000 steps.

    beta_i = sigmoid(u_i) (0.005 - 1e-5) + 1e-5 with u_i evenly spaced over [-6, 6], i = 0..999. In float64, because
    sqrt(1 - alpha_bar) loses three digits to cancellation in float32 at early steps.
    """
    u = np.linspace(-6, 6, STEPS)
    betas = (0.005 - 1e-5) / (1 + np.exp(-u)) + 1e-5
    return NoiseSchedule(betas, np.cumprod(1 - betas))


def q_sample(x: Float[mx.array, "*shape"], step: int, noise: Float[mx.array, "*shape"]) -> Float[mx.array, "*shape"]:
    """Diffuse pixels to step t with the given noise.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, not clipped and not normalised again.
    `step` t counts from 0 to 999. Even at 999 a share sqrt(alpha_bar) = 0.285 of the image is left.
    """
    if not 0 <= step < STEPS:
        raise UserError(f"The diffusion step must be from 0 to {STEPS - 1}, got {step}. SeVa uses 500 or 800.")
    alpha_bar = noise_schedule().alpha_bars[step]
    return float(np.sqrt(alpha_bar)) * x + float(np.sqrt(1 - alpha_bar)) * noise


def diffuse(x: Float[mx.array, "*shape"], step: int, key: mx.array) -> Float[mx.array, "*shape"]:
    """`q_sample` with standard normal noise from `key`.

    x: pixels normalised with CLIP's mean and std. Padding gets noise too.
    """
    return q_sample(x, step, mx.random.normal(x.shape, dtype=x.dtype, key=key))
