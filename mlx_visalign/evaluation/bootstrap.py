"""How sure a figure is: percentile bootstrap intervals over images (Efron 1979; Efron and Tibshirani 1993, chapter 13).

An evaluation counts things for each image, and its figures are functions of the summed counts. Images are drawn with
replacement, as many as there are, and the figures computed again from each draw; the interval is what the middle
`level` of the draws cover. A question's or a mention's errors go with its image, so images are what is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mlx_visalign.utils.errors import UserError

# d is the number of draws, for all of which the figures are computed at once.
Sums = Mapping[str, Float[np.ndarray, "d"]]
Metrics = Callable[[Sums], dict[str, Float[np.ndarray, "d"]]]


@dataclass(frozen=True)
class Counts:
    """What an evaluation counted: named columns with one number for each image, in the order of `images`."""

    images: tuple[str, ...]
    columns: dict[str, Int[np.ndarray, "n"]]


@dataclass(frozen=True)
class Interval:
    """A figure with the interval around it."""

    value: float
    low: float
    high: float


def intervals(counts: Counts, metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95) -> dict[str, Interval]:
    """Every figure of `metrics` with its interval. Raises UserError if no image was counted."""
    return mean_intervals([counts], metrics, seed, draws, level)


def differences(
    before: Counts, after: Counts, metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """Every figure of `after` minus that of `before`, paired: each draw takes the same images for both.

    Raises UserError if the two were not counted over the same images in the same order.
    """
    return mean_differences(before, [after], metrics, seed, draws, level)


def mean_intervals(
    several: Sequence[Counts], metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """Every figure's mean over several evaluations of the same images, at least one: a training from each of some seeds.

    Each draw takes the same images for all of them. So the interval is over images, not over trainings.
    """
    return {name: _interval(values, level) for name, values in _means(several, metrics, seed, draws).items()}


def mean_differences(
    before: Counts, after: Sequence[Counts], metrics: Metrics, seed: int, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """The mean of every figure over several evaluations `after` minus that of `before`; otherwise as `differences`."""
    if any(before.images != counts.images for counts in after):
        raise UserError("A paired difference needs two evaluations of the same images, and these two differ in them.")
    old, new = (_means(counts, metrics, seed, draws) for counts in ([before], after))
    return {name: _interval(new[name] - old[name], level) for name in new}


def ratio(top: Float[np.ndarray, "d"], bottom: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """top / bottom, and 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def f1(one: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """The harmonic mean."""
    return ratio(2 * one * other, one + other)


def _means(several: Sequence[Counts], metrics: Metrics, seed: int, draws: int) -> dict[str, Float[np.ndarray, "d"]]:
    weights = _weights(several[0], seed, draws)
    figures = [metrics(_sums(counts, weights)) for counts in several]
    return {name: np.mean([one[name] for one in figures], axis=0) for name in figures[0]}


def _weights(counts: Counts, seed: int, draws: int) -> Int[np.ndarray, "d n"]:
    """How often each image is in each draw; the first row is the evaluation itself, each image once."""
    n = len(counts.images)
    if n == 0:
        raise UserError("There is nothing to evaluate: no image has an answer.")
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.concatenate([np.ones((1, n), dtype=drawn.dtype), drawn])


def _sums(counts: Counts, weights: Int[np.ndarray, "d n"]) -> Sums:
    return {name: (weights @ column).astype(float) for name, column in counts.columns.items()}


def _interval(values: Float[np.ndarray, "d"], level: float) -> Interval:
    low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))
