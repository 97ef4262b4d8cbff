"""Percentile bootstrap intervals over images.

Source: Efron 1979; Efron and Tibshirani 1993, chapter 13. An evaluation counts things per image, and its metrics are functions
of the summed counts. Images are resampled with replacement, as many as there are, and the metrics recomputed for each draw;
the interval covers the central `level` of the draws. Images are resampled, not questions or mentions, because errors in the
same image are correlated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mlx_visalign.utils.errors import UserError

# d is the number of draws, for all of which the metrics are computed at once.
Sums = Mapping[str, Float[np.ndarray, "d"]]
Metrics = Callable[[Sums], dict[str, Float[np.ndarray, "d"]]]


@dataclass(frozen=True)
class Counts:
    """Counts of an evaluation per image.

    `columns` are named and have one number for each of `images`, in that order.
    """

    images: tuple[str, ...]
    columns: dict[str, Int[np.ndarray, "n"]]


@dataclass(frozen=True)
class Interval:
    """A value with its interval."""

    value: float
    low: float
    high: float


def intervals(counts: Counts, metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95) -> dict[str, Interval]:
    """Each metric with its interval.

    Raises UserError if there are no images.
    """
    return mean_intervals([counts], metrics, seed, draws, level)


def differences(
    before: Counts, after: Counts, metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """Paired differences of metrics, `after` minus `before`.

    Each draw takes the same images for both. Raises UserError if the two do not have the same images in the same order.
    """
    return mean_differences(before, [after], metrics, seed, draws, level)


def mean_intervals(
    several: Sequence[Counts], metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """Each metric's mean over several evaluations.

    One or more evaluations of the same images, such as trainings with different seeds. Each draw takes the same images for all
    of them, so the interval is over images, not over trainings.
    """
    return {name: _interval(values, level) for name, values in _means(several, metrics, seed, draws).items()}


def mean_differences(
    before: Counts, after: Sequence[Counts], metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """As `differences`, for the mean over several evaluations `after`."""
    if any(before.images != counts.images for counts in after):
        raise UserError("A paired difference needs two evaluations of the same images, but these have different images.")
    old, new = (_means(counts, metrics, seed, draws) for counts in ([before], after))
    return {name: _interval(new[name] - old[name], level) for name in new}


def ratio(top: Float[np.ndarray, "d"], bottom: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """top / bottom, and 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def f1(one: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """Harmonic mean."""
    return ratio(2 * one * other, one + other)


def _means(several: Sequence[Counts], metrics: Metrics, seed: int, draws: int) -> dict[str, Float[np.ndarray, "d"]]:
    weights = _weights(several[0], seed, draws)
    figures = [metrics(_sums(counts, weights)) for counts in several]
    return {name: np.mean([one[name] for one in figures], axis=0) for name in figures[0]}


def _weights(counts: Counts, seed: int, draws: int) -> Int[np.ndarray, "d n"]:
    """How often each image is in each draw; the first row has every image once, the evaluation itself."""
    n = len(counts.images)
    if n == 0:
        raise UserError("Nothing to evaluate: no image has an answer.")
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.concatenate([np.ones((1, n), dtype=drawn.dtype), drawn])


def _sums(counts: Counts, weights: Int[np.ndarray, "d n"]) -> Sums:
    return {name: (weights @ column).astype(float) for name, column in counts.columns.items()}


def _interval(values: Float[np.ndarray, "d"], level: float) -> Interval:
    low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))
