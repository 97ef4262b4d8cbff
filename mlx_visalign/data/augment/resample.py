"""Resizing with Pillow's antialiased filters, as two small matrix products."""

from collections.abc import Callable
from typing import Literal

import mlx.core as mx
import numpy as np
from jaxtyping import Float, UInt8

Method = Literal["bilinear", "bicubic"]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, as in Pillow (torch's antialiased bicubic uses the same, its plain one -0.75)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_FILTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bilinear": _triangle, "bicubic": _cubic}


def resample_matrix(source: int, target: int, method: Method) -> Float[mx.array, "target source"]:
    """Weights of source pixels (columns) for target pixels (rows).

    Each row sums to 1. When shrinking, the filter is stretched by source / target so that every source pixel counts
    (antialiasing). Weights beyond the border are dropped and the rest rescaled. Source: Pillow, src/libImaging/Resample.c.
    """
    scale = source / target
    centers = (np.arange(target)[:, None] + 0.5) * scale
    distances = (np.arange(source) + 0.5 - centers) / max(scale, 1.0)
    weights = _FILTERS[method](distances)
    return mx.array(weights / weights.sum(axis=1, keepdims=True), dtype=mx.float32)


def to_levels(values: Float[mx.array, "*shape"]) -> UInt8[mx.array, "*shape"]:
    """Clip to 0..255 and round to integers, halves up."""
    return mx.floor(mx.clip(values, 0, 255) + 0.5).astype(mx.uint8)


def resize(
    image: UInt8[mx.array, "h w 3"], size: tuple[int, int], method: Method = "bilinear"
) -> UInt8[mx.array, "height width 3"]:
    """Resize to (height, width) like `PIL.Image.resize`.

    Equal to within one level of 255.
    """
    height, width = size
    columns = resample_matrix(image.shape[1], width, method)
    rows = resample_matrix(image.shape[0], height, method)
    # Like Pillow, round to integer levels between the two passes.
    wide = to_levels(mx.einsum("xw,hwc->hxc", columns, image.astype(mx.float32)))
    return to_levels(mx.einsum("yh,hxc->yxc", rows, wide.astype(mx.float32)))
