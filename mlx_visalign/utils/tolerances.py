"""Numerical tolerances per dtype of the activations.

A quantised model computes in the dtype of its norms. Tolerances are in nats, for log-probabilities of single tokens. Where
rounding dominates, the bound is measured on the model itself: its noise floor is how far log-probabilities move when the
inputs change by no more than the dtype's rounding, or the device's where that is coarser (some GPUs multiply float32
matrices in fewer bits). On the tiny model and on random ones, equivalent computations differ by 0 to 2 noise floors.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

FLOORS = 3  # maximum difference between equivalent computations, in noise floors
# In float32:
SAME_LOSS = 1e-6  # two losses of the same numbers
SAME_SUM = 1e-4  # an answer's summed log-probability, alone and in a batch
SAME_RATIO = 1e-3  # distance of the PPO ratio from 1 before a rollout's first update
SAME_SHARE = 1e-4  # share of the largest logit: a lossless conversion against transformers


@dataclass(frozen=True)
class Precision:
    """Tolerances of one dtype.

    epsilon  the step from 1 to the next number
    least    always allowed, in nats
    parity   outputs of the tests' models (logits, unit vectors) against the same weights in another library
    """

    epsilon: float
    least: float
    parity: float


PRECISIONS = {
    "float32": Precision(2.0**-23, 2e-5, 1e-5),
    "float16": Precision(2.0**-10, 0.0, 2e-2),
    "bfloat16": Precision(2.0**-7, 0.0, 2e-1),
}
PARITY = PRECISIONS["float32"].parity


def precision_of(dtype: mx.Dtype) -> Precision:
    return PRECISIONS[str(dtype).rpartition(".")[2]]


def rounding(dtype: mx.Dtype) -> float:
    """Relative rounding error of the dtype on this device.

    The larger of the dtype's epsilon and the measured error of a matrix product.
    """
    a, b = (mx.random.normal((256, 256), key=mx.random.key(seed)).astype(dtype) for seed in (0, 1))
    exact = np.array(a.astype(mx.float32), np.float64) @ np.array(b.astype(mx.float32), np.float64)
    error = np.array((a @ b).astype(mx.float32)) - exact
    return max(precision_of(dtype).epsilon, float(np.sqrt(np.mean(error**2) / np.mean(exact**2))))


def tolerance(dtype: mx.Dtype, floor: float) -> float:
    """Allowed difference of two log-probabilities, in nats.

    `floor` is the noise floor measured on the model.
    """
    return max(precision_of(dtype).least, FLOORS * floor)
