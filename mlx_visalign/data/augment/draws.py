"""Random draws and random image operations.

Every function takes its key; the same key gives the same view. Ranges are torchvision's.
"""

import math
from collections.abc import Callable

import mlx.core as mx
from jaxtyping import UInt8

from mlx_visalign.data.augment import color, filters, geometry
from mlx_visalign.data.augment.geometry import Box, Point
from mlx_visalign.data.augment.resample import resize

CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


def uniform(key: mx.array, low: float, high: float) -> float:
    """Draw from U(low, high)."""
    return float(mx.random.uniform(low, high, key=key))


def chance(key: mx.array, probability: float) -> bool:
    """True with the given probability."""
    return bool(mx.random.bernoulli(probability, key=key))


def integer(key: mx.array, low: int, high: int) -> int:
    """Uniform integer in [low, high)."""
    return int(mx.random.randint(low, high, key=key))


def maybe(
    operation: Callable[[mx.array], mx.array], image: UInt8[mx.array, "h w 3"], key: mx.array, probability: float = 0.5
) -> UInt8[mx.array, "h w 3"]:
    """Apply the operation with the given probability."""
    return operation(image) if chance(key, probability) else image


def random_crop(image: UInt8[mx.array, "h w 3"], key: mx.array, side: int) -> UInt8[mx.array, "side side 3"]:
    """Random square crop of `side` pixels.

    `UserError` if the image is smaller.
    """
    return geometry.crop(image, _place(key, image.shape[0], image.shape[1], side, side))


def _place(key: mx.array, image_height: int, image_width: int, height: int, width: int) -> Box:
    """Random position for a box of the given size; at the top left if it does not fit."""
    top_key, left_key = mx.random.split(key)
    top = integer(top_key, 0, max(image_height - height, 0) + 1)
    left = integer(left_key, 0, max(image_width - width, 0) + 1)
    return Box(top, left, height, width)


def random_box(key: mx.array, height: int, width: int, area: tuple[float, float]) -> Box:
    """Random box for a resized crop.

    Its share of the image's area is U(area), its width / height log-uniform in 3/4..4/3. The first of ten tries that fits
    into the image; if none does, the largest central box that the ratio allows.
    """
    place_key, *try_keys = mx.random.split(key, 1 + CROP_TRIES)
    for try_key in try_keys:
        area_key, ratio_key = mx.random.split(try_key)
        side = math.sqrt(uniform(area_key, *area) * height * width)
        stretch = math.exp(uniform(ratio_key, *map(math.log, CROP_RATIO)) / 2)
        box_height, box_width = round(side / stretch), round(side * stretch)
        if 0 < box_height <= height and 0 < box_width <= width:
            return _place(place_key, height, width, box_height, box_width)
    box_height = min(height, round(width / CROP_RATIO[0]))
    box_width = min(width, round(height * CROP_RATIO[1]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def random_resized_crop(
    image: UInt8[mx.array, "h w 3"], key: mx.array, side: int, area: tuple[float, float]
) -> UInt8[mx.array, "side side 3"]:
    """Crop a `random_box`, resize to `side` x `side` (bilinear)."""
    box = random_box(key, image.shape[0], image.shape[1], area)
    return resize(geometry.crop(image, box), (side, side))


def random_perspective(image: UInt8[mx.array, "h w 3"], key: mx.array, distortion: float = 0.6) -> UInt8[mx.array, "h w 3"]:
    """Random perspective distortion.

    Each corner moves inwards independently, by up to `distortion` of the half width and half height.
    """
    h, w, _ = image.shape
    right, down = int(distortion * (w // 2)), int(distortion * (h // 2))
    start: list[Point] = [(0, 0), (w - 1, 0), (w - 1, h - 1), (0, h - 1)]
    inwards = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    end: list[Point] = []
    for (x, y), (to_x, to_y), corner_key in zip(start, inwards, mx.random.split(key, 4), strict=True):
        x_key, y_key = mx.random.split(corner_key)
        end.append((x + to_x * integer(x_key, 0, right + 1), y + to_y * integer(y_key, 0, down + 1)))
    return geometry.warp_perspective(image, geometry.perspective_coefficients(start, end))


def random_rotation(image: UInt8[mx.array, "h w 3"], key: mx.array) -> UInt8[mx.array, "h w 3"]:
    """Rotate counter-clockwise by U(0, 180) degrees."""
    return geometry.rotate(image, uniform(key, 0.0, 180.0))


def random_affine(image: UInt8[mx.array, "h w 3"], key: mx.array) -> UInt8[mx.array, "h w 3"]:
    """Random rotation, scaling and translation.

    Rotates clockwise by U(30, 70) degrees, scales by U(0.5, 0.75), moves by up to 0.1 of the width and 0.3 of the height.
    """
    angle_key, x_key, y_key, scale_key = mx.random.split(key, 4)
    h, w, _ = image.shape
    shift = (round(uniform(x_key, -0.1 * w, 0.1 * w)), round(uniform(y_key, -0.3 * h, 0.3 * h)))
    matrix = geometry.affine_about_center(h, w, uniform(angle_key, 30.0, 70.0), shift, uniform(scale_key, 0.5, 0.75))
    return geometry.warp_affine(image, matrix)


def color_jitter(image: UInt8[mx.array, "h w 3"], key: mx.array, hue: float = 0.1) -> UInt8[mx.array, "h w 3"]:
    """Jitter brightness, contrast, saturation and hue, in random order.

    Factors U(0.6, 1.4) for the first three, a shift of U(-hue, hue) for the hue.
    """
    order_key, *factor_keys = mx.random.split(key, 5)
    operations = [color.adjust_brightness, color.adjust_contrast, color.adjust_saturation, color.adjust_hue]
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-hue, hue)]
    for place in map(int, mx.random.permutation(4, key=order_key)):
        image = operations[place](image, uniform(factor_keys[place], *ranges[place]))
    return image


def random_blur(image: UInt8[mx.array, "h w 3"], key: mx.array) -> UInt8[mx.array, "h w 3"]:
    """Gaussian blur with standard deviation U(0.1, 2.0).

    In pixels of the given image, independent of the model's image size.
    """
    return filters.gaussian_blur(image, uniform(key, 0.1, 2.0))


def random_mask(image: UInt8[mx.array, "h w 3"], key: mx.array) -> UInt8[mx.array, "h w 3"]:
    """Hide random cells of a 6 x 6 grid.

    Each with probability 0.3. Ours, not SeVa's.
    """
    return geometry.hide(image, mx.random.bernoulli(0.3, (6, 6), key=key))


def contrastive(
    image: UInt8[mx.array, "h w 3"], key: mx.array, side: int, area: tuple[float, float], hue: float
) -> UInt8[mx.array, "side side 3"]:
    """Common part of the moco, byol and simclr views.

    Random resized crop, flip, colour jitter and greyscale. Jitter is always applied, as in SeVa; MoCo v2 itself applies it
    with probability 0.8 (and its blur with 0.5).
    """
    crop_key, flip_key, jitter_key, grey_key = mx.random.split(key, 4)
    image = random_resized_crop(image, crop_key, side, area)
    image = maybe(geometry.flip, image, flip_key)
    image = color_jitter(image, jitter_key, hue)
    return maybe(color.grayscale, image, grey_key, 0.2)


def contrastive_and_blur(
    image: UInt8[mx.array, "h w 3"], key: mx.array, side: int, area: tuple[float, float]
) -> UInt8[mx.array, "side side 3"]:
    """`contrastive` with hue 0.1, then `random_blur`."""
    view_key, blur_key = mx.random.split(key)
    return random_blur(contrastive(image, view_key, side, area, hue=0.1), blur_key)
