"""Deterministic geometric operations.

Crops, padding, flip, masking, affine and perspective maps. Images are uint8 [h, w, 3]. Pixels from outside the image are
black, as in SeVa.
"""

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mlx_visalign.utils.errors import UserError


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


class Affine(NamedTuple):
    """Affine map from *output* to input points.

    x_in = a x + b y + c, y_in = d x + e y + f.
    """

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float


Point = tuple[int, int]

MEAN_COLOR = (122, 116, 104)  # floor(255 x the mean that CLIP subtracts): about 0 for the model


def crop(image: UInt8[mx.array, "h w 3"], box: Box) -> UInt8[mx.array, "height width 3"]:
    """The pixels inside `box`, which must lie inside the image."""
    h, w, _ = image.shape
    if min(box.top, box.left) < 0 or box.top + box.height > h or box.left + box.width > w:
        raise UserError(
            f"A crop of {box.width}x{box.height} pixels at ({box.left}, {box.top}) does not fit into an image of "
            f"{w}x{h}. Use larger images, or a view that resizes, such as crop."
        )
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def pad(image: UInt8[mx.array, "h w 3"], border: int) -> UInt8[mx.array, "height width 3"]:
    """`border` black pixels on each side."""
    return mx.pad(image, [(border, border), (border, border), (0, 0)])


def center_crop(image: UInt8[mx.array, "h w 3"], side: int) -> UInt8[mx.array, "side side 3"]:
    """Central square crop, as torchvision's `CenterCrop`.

    A smaller image is padded with black first.
    """
    missing = [max(side - length, 0) for length in image.shape[:2]]
    image = mx.pad(image, [(n // 2, n - n // 2) for n in missing] + [(0, 0)])
    h, w, _ = image.shape
    return crop(image, Box(round((h - side) / 2), round((w - side) / 2), side, side))


def flip(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """Mirror left and right."""
    return image[:, ::-1]


def blank(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """Image of CLIP's mean colour only.

    The control without any image. Ours, not SeVa's.
    """
    return mx.broadcast_to(mx.array(MEAN_COLOR, dtype=mx.uint8), image.shape)


def hide(image: UInt8[mx.array, "h w 3"], hidden: Bool[mx.array, "rows columns"]) -> UInt8[mx.array, "h w 3"]:
    """Paint hidden cells of a grid in the mean colour.

    Ours, not SeVa's.
    """
    (h, w, _), (rows, columns) = image.shape, hidden.shape
    covered = hidden[mx.arange(h) * rows // h][:, mx.arange(w) * columns // w]
    return mx.where(covered[..., None], blank(image), image)


def affine_about_center(
    height: int, width: int, degrees: float, translate: tuple[int, int] = (0, 0), scale: float = 1.0
) -> Affine:
    """Rotation and scaling about the centre, then translation.

    `degrees` are clockwise; `translate` = (right, down) in pixels. Source: torchvision `_get_inverse_affine_matrix` without
    shear.
    """
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    center_x, center_y = width / 2, height / 2
    x, y = center_x + translate[0], center_y + translate[1]
    return Affine(cos, sin, center_x - cos * x - sin * y, -sin, cos, center_y + sin * x - cos * y)


def warp_affine(image: UInt8[mx.array, "h w 3"], matrix: Affine) -> UInt8[mx.array, "h w 3"]:
    """Apply an affine map, nearest pixel, as Pillow's `transform(AFFINE, NEAREST)`.

    A point on the edge of two pixels may go to either: we compute in float32, Pillow in 16.16 fixed point.
    """
    x, y = _pixel_centers(image)
    x_in = mx.floor(matrix.a * x + matrix.b * y + matrix.c)
    y_in = mx.floor(matrix.d * x + matrix.e * y + matrix.f)
    return mx.where(_inside(image, x_in, y_in)[..., None], _pick(image, x_in, y_in), mx.zeros_like(image))


def rotate(image: UInt8[mx.array, "h w 3"], degrees: float) -> UInt8[mx.array, "h w 3"]:
    """Rotate *counter-clockwise* about the centre, like `PIL.Image.rotate`.

    Same size, nearest pixel.
    """
    return warp_affine(image, affine_about_center(image.shape[0], image.shape[1], -degrees))


def perspective_coefficients(start: list[Point], end: list[Point]) -> list[float]:
    """Perspective map from `start` to `end` corners, eight coefficients.

    x_in = (c0 x + c1 y + c2) / (c6 x + c7 y + 1), y_in = (c3 x + c4 y + c5) / (c6 x + c7 y + 1).
    """
    rows = []
    for (x_in, y_in), (x, y) in zip(start, end, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -x_in * x, -x_in * y])
        rows.append([0, 0, 0, x, y, 1, -y_in * x, -y_in * y])
    # Least squares: in an image one or two pixels wide corners coincide, and the system is singular.
    solution, *_ = np.linalg.lstsq(np.array(rows, dtype=np.float64), np.array(start).reshape(8), rcond=None)
    return solution.tolist()


def warp_perspective(image: UInt8[mx.array, "h w 3"], coefficients: list[float]) -> UInt8[mx.array, "h w 3"]:
    """Apply a perspective map, bilinear.

    Rounds down, as Pillow's `transform(PERSPECTIVE, BILINEAR)`.
    """
    c = coefficients
    x, y = _pixel_centers(image)
    depth = c[6] * x + c[7] * y + 1
    x_in, y_in = (c[0] * x + c[1] * y + c[2]) / depth, (c[3] * x + c[4] * y + c[5]) / depth
    inside = _inside(image, x_in, y_in)[..., None]
    left, top = mx.floor(x_in - 0.5), mx.floor(y_in - 0.5)
    right_share, bottom_share = (x_in - 0.5 - left)[..., None], (y_in - 0.5 - top)[..., None]

    def line(row: mx.array) -> mx.array:
        near = _pick(image, left, row).astype(mx.float32)
        return near + (_pick(image, left + 1, row) - near) * right_share

    above = line(top)
    blended = above + (line(top + 1) - above) * bottom_share
    return mx.where(inside, blended, 0).astype(mx.uint8)


def _pixel_centers(image: mx.array) -> tuple[Float[mx.array, "1 w"], Float[mx.array, "h 1"]]:
    h, w, _ = image.shape
    return mx.arange(w)[None, :] + 0.5, mx.arange(h)[:, None] + 0.5


def _inside(image: mx.array, x: Float[mx.array, "h w"], y: Float[mx.array, "h w"]) -> mx.array:
    h, w, _ = image.shape
    return (x >= 0) & (x < w) & (y >= 0) & (y < h)


def _pick(image: mx.array, x: Float[mx.array, "h w"], y: Float[mx.array, "h w"]) -> UInt8[mx.array, "h w 3"]:
    """The pixels in columns x and rows y, both clamped to the image."""
    h, w, _ = image.shape
    columns, rows = mx.clip(x, 0, w - 1).astype(mx.int32), mx.clip(y, 0, h - 1).astype(mx.int32)
    return image.reshape(h * w, 3)[rows * w + columns]
