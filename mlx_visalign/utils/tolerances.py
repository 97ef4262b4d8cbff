"""How far two ways of computing the same may be apart: the one table of tolerances, by the dtype of the activations.

A quantised model computes in the dtype of its norms. Tolerances are in nats, for log-probabilities of single tokens. Where
rounding decides, the bound is measured on the model at hand: its noise floor is how far log-probabilities move when what
goes in is changed by no more than the dtype's rounding, or the device's where that is coarser (some GPUs multiply float32
matrices in fewer bits). Measured on the tiny model and on random ones, the ways differ by 0 to 2 such floors.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

FLOORS = 3  # so many noise floors may two ways differ
# In float32:
SAME_LOSS = 1e-6  # two losses that are of the same numbers
SAME_SUM = 1e-4  # an answer's summed log-probability, read beside other answers
SAME_RATIO = 1e-3  # of 1, before a rollout's first update: an answer's log-probabilities read twice
SAME_SHARE = 1e-4  # of the largest logit, a conversion that lost nothing against transformers


@dataclass(frozen=True)
class Precision:
    """epsilon: the step from 1 to the next number. least: always allowed, in nats.

    parity: what the tests' models put out, logits or unit vectors, against what the same weights do in another library.
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
    """The relative error to expect of a number: the dtype's, or that of a matrix product on this device."""
    a, b = (mx.random.normal((256, 256), key=mx.random.key(seed)).astype(dtype) for seed in (0, 1))
    exact = np.array(a.astype(mx.float32), np.float64) @ np.array(b.astype(mx.float32), np.float64)
    error = np.array((a @ b).astype(mx.float32)) - exact
    return max(precision_of(dtype).epsilon, float(np.sqrt(np.mean(error**2) / np.mean(exact**2))))


def tolerance(dtype: mx.Dtype, floor: float) -> float:
    """How far two log-probabilities may be apart, where `floor` was measured on the model."""
    return max(precision_of(dtype).least, FLOORS * floor)
