"""Diffusion noise against the vectors of SeVa's schedule."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.data.augment import diffuse, noise_schedule, q_sample
from mlx_visalign.utils.errors import UserError

SCHEDULE = [  # t, beta_t, alpha_bar_t, sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)
    (0, 2.233838955e-05, 0.999977662, 0.999988831, 0.004726351),
    (100, 5.077978577e-05, 0.996588761, 0.998292923, 0.058405816),
    (200, 1.430297153e-04, 0.987795219, 0.993878876, 0.110475249),
    (300, 4.264050328e-04, 0.962329372, 0.980983880, 0.194089226),
    (400, 1.169332025e-03, 0.892759550, 0.944859540, 0.327475876),
    (500, 2.512492470e-03, 0.744798526, 0.863017106, 0.505174696),
    (600, 3.851324074e-03, 0.539117873, 0.734246466, 0.678883000),
    (700, 4.588156555e-03, 0.351266420, 0.592677332, 0.805439991),
    (800, 4.868516827e-03, 0.218101804, 0.467013709, 0.884250075),
    (900, 4.959703199e-03, 0.133143162, 0.364887876, 0.931051469),
    (999, 4.987661610e-03, 0.081249194, 0.285042443, 0.958514896),
]
SAMPLES = {
    100: [-1.771719, -0.070087, 0.545871, 2.139316],
    500: [-1.395233, -0.606210, 0.835648, 1.826690],
    800: [-0.571754, -1.061100, 0.940907, 0.957952],
    999: [-0.223327, -1.150218, 0.909333, 0.563747],
}


@pytest.mark.parametrize("step, beta, alpha_bar, signal, noise", SCHEDULE)
def test_schedule(step, beta, alpha_bar, signal, noise):
    schedule = noise_schedule()
    assert schedule.betas[step] == pytest.approx(beta, rel=1e-9)
    assert schedule.alpha_bars[step] == pytest.approx(alpha_bar, abs=1e-9)
    # What multiplies image and noise: float32 of the float64 values.
    one, zero = mx.array([1.0]), mx.array([0.0])
    assert q_sample(one, step, zero).item() == pytest.approx(signal, rel=2e-7)
    assert q_sample(zero, step, one).item() == pytest.approx(noise, rel=2e-7)


def test_schedule_invariants():
    betas, alpha_bars = noise_schedule()
    assert betas.sum() == pytest.approx(2.505)
    assert np.argmax(alpha_bars < 0.5) == 620
    assert np.argmax(alpha_bars < 0.25) == 772
    assert alpha_bars[620] == pytest.approx(0.498010, abs=1e-6)


@pytest.mark.parametrize("step", SAMPLES)
def test_q_sample(step):
    x, noise = mx.array([-1.7923, 0, 0.5, 2.1459]), mx.array([0.3, -1.2, 0.8, -0.05])
    assert q_sample(x, step, noise).tolist() == pytest.approx(SAMPLES[step], abs=1e-6)


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_step_out_of_range_is_a_users_mistake(step):
    with pytest.raises(UserError, match="from 0 to 999"):
        q_sample(mx.zeros(3), step, mx.zeros(3))


def test_noise_is_standard_normal_and_belongs_to_the_key():
    x = mx.zeros((64, 64, 3))
    first, again, other = (diffuse(x, 999, mx.random.key(seed)) for seed in (0, 0, 1))
    assert mx.array_equal(first, again)
    assert first.std().item() == pytest.approx(0.9585, rel=0.02)
    assert first.mean().item() == pytest.approx(0, abs=0.03)
    assert abs((first * other).mean().item()) < 0.03


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_pixels_keep_their_dtype(dtype):
    assert diffuse(mx.zeros((2, 2, 3), dtype=dtype), 500, mx.random.key(0)).dtype == dtype
