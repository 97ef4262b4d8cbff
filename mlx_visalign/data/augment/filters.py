"""Deterministic blur and sharpness with Pillow's integer arithmetic.

Images are uint8 [h, w, 3].
"""

import math

import mlx.core as mx
import numpy as np
from jaxtyping import UInt8

from mlx_visalign.data.augment.color import blend

_PASSES = 3


def gaussian_blur(image: UInt8[mx.array, "h w 3"], radius: float) -> UInt8[mx.array, "h w 3"]:
    """Gaussian blur, equal to `PIL.ImageFilter.GaussianBlur`.

    `radius` > 0 is the standard deviation in pixels. Like Pillow, it approximates the Gaussian by three box blurs of
    fractional width (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011).
    """
    box = _box_radius(radius)
    for _ in range(2):  # along x, then along y
        image = image.swapaxes(0, 1)
        for _ in range(_PASSES):
            image = _box_blur(image, box)
    return image


def _box_radius(sigma: float) -> float:
    """Box radius with variance sigma^2 after three passes: integer part (eq. 11) plus fraction (eq. 14)."""
    variance = sigma * sigma / _PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + fraction


def _box_blur(image: UInt8[mx.array, "n m 3"], radius: float) -> UInt8[mx.array, "n m 3"]:
    """Mean over 2 radius + 1 pixels along the first axis, edges repeated, in Pillow's 8.24 fixed point (BoxBlur.c)."""
    whole, length = int(radius), image.shape[0]
    # Divided in float32 like Pillow: one unit more or less decides ties, which can affect large uniform areas.
    inner = int(np.float32(2**24) / np.float32(2 * radius + 1))
    outer = (2**24 - (2 * whole + 1) * inner) // 2
    weights = [outer, *[inner] * (2 * whole + 1), outer]
    padded = mx.pad(image, [(whole + 1, whole + 1), (0, 0), (0, 0)], mode="edge").astype(mx.uint32)
    total = mx.full(image.shape, 2**23, dtype=mx.uint32)
    for start, weight in enumerate(weights):
        total = total + padded[start : start + length] * weight
    return (total >> 24).astype(mx.uint8)


def smooth(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """Smoothing, equal to `PIL.ImageFilter.SMOOTH`.

    A 3x3 mean with five times the weight on the centre; border pixels are unchanged.
    """
    values = image.astype(mx.int32)
    h, w, _ = image.shape
    if min(h, w) < 3:
        return image
    total = 4 * values[1:-1, 1:-1]
    for down in range(3):
        for right in range(3):
            total = total + values[down : h - 2 + down, right : w - 2 + right]
    middle = (2 * total + 13) // 26
    inner_columns = mx.concatenate([values[1:-1, :1], middle, values[1:-1, -1:]], axis=1)
    return mx.concatenate([values[:1], inner_columns, values[-1:]], axis=0).astype(mx.uint8)


def adjust_sharpness(image: UInt8[mx.array, "h w 3"], factor: float) -> UInt8[mx.array, "h w 3"]:
    """Factor 0: smoothed, 1: image, above 1: sharper."""
    return blend(smooth(image), image, factor)
