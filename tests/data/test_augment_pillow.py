"""The deterministic operations against Pillow, on an image with gradients, flat areas, noise and grey."""

import math

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mlx_visalign.data.augment import color, filters, geometry, resize
from mlx_visalign.data.augment.geometry import Affine, Box
from mlx_visalign.utils.errors import UserError

HEIGHT, WIDTH = 97, 131


def draw() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) % 256], axis=-1).astype(np.uint8)
    values[20:60, 30:80] = np.random.default_rng(0).integers(0, 256, (40, 50, 3))
    values[70:90, 10:40] = [200, 30, 60]
    values[70:90, 60:90] = 128
    return values


PICTURE = draw()
IMAGE, PIL_IMAGE = mx.array(PICTURE), Image.fromarray(PICTURE)
FLAT = np.full((20, 30, 3), 7, dtype=np.uint8)
PALE = (PICTURE // 3 + 40).astype(np.uint8)
FEW_LEVELS = (PICTURE // 128 * 90).astype(np.uint8)
TINY = PICTURE[:2, :5]


def gaps(ours: mx.array, pillow: Image.Image) -> np.ndarray:
    """How far each value is from Pillow's, in levels."""
    expected = np.asarray(pillow.convert("RGB")).astype(int)
    assert ours.dtype == mx.uint8 and ours.shape == expected.shape
    return np.abs(np.array(ours).astype(int) - expected)


def assert_same(ours: mx.array, pillow: Image.Image):
    assert gaps(ours, pillow).max() == 0


def assert_within_one_level(ours: mx.array, pillow: Image.Image, share: float):
    """At most one level apart, on at most `share` of the values: float rounding next to a whole (or half) level."""
    gap = gaps(ours, pillow)
    assert gap.max() <= 1
    assert (gap > 0).mean() <= share


def assert_few_differ(ours: mx.array, pillow: Image.Image, share: float):
    assert (gaps(ours, pillow) > 0).mean() <= share


# -- colour: whole-number arithmetic, so the same values -----------------------------------------------------------------


@pytest.mark.parametrize("picture", [PICTURE, FLAT, PALE, FEW_LEVELS, TINY])
def test_integer_operations_are_the_same(picture):
    image, pil = mx.array(picture), Image.fromarray(picture)
    assert_same(color.grayscale(image), pil.convert("L"))
    assert_same(color.invert(image), ImageOps.invert(pil))
    assert_same(color.equalize(image), ImageOps.equalize(pil))
    assert_same(filters.smooth(image), pil.filter(ImageFilter.SMOOTH))
    assert_same(geometry.flip(image), ImageOps.mirror(pil))


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_posterize(bits):
    assert_same(color.posterize(IMAGE, bits), ImageOps.posterize(PIL_IMAGE, bits))


@pytest.mark.parametrize("threshold", [0.0, 28.3, 128.0, 255.0])
def test_solarize(threshold):
    assert_same(color.solarize(IMAGE, threshold), ImageOps.solarize(PIL_IMAGE, threshold))


# -- colour: Pillow computes in float, compiled with fused multiply-add on some machines ---------------------------------


@pytest.mark.parametrize("picture", [PICTURE, FLAT, PALE, FEW_LEVELS])
def test_autocontrast(picture):
    assert_within_one_level(color.autocontrast(mx.array(picture)), ImageOps.autocontrast(Image.fromarray(picture)), share=0.02)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.4, 1.9])
@pytest.mark.parametrize(
    "ours, enhancer",
    [
        (color.adjust_brightness, ImageEnhance.Brightness),
        (color.adjust_contrast, ImageEnhance.Contrast),
        (color.adjust_saturation, ImageEnhance.Color),
        (filters.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancers(ours, enhancer, factor):
    assert_within_one_level(ours(IMAGE, factor), enhancer(PIL_IMAGE).enhance(factor), share=0.002)


@pytest.mark.parametrize("shift", [-0.4, -0.1, 0.0, 0.05, 0.4])
def test_hue(shift):
    """One level of hue is 6 levels of colour; Pillow's floats lose it where the exact hue is a whole number."""
    hue, saturation, value = PIL_IMAGE.convert("HSV").split()
    turned = hue.point([(level + int(shift * 255)) % 256 for level in range(256)])
    gap = gaps(color.adjust_hue(IMAGE, shift), Image.merge("HSV", (turned, saturation, value)))
    assert gap.max() <= 6
    assert (gap > 0).mean() <= 0.003


# -- blur and resize: roundings at the edge between two levels -----------------------------------------------------------


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.8, 1.0, 1.3, 2.0, 5.0])
def test_gaussian_blur(radius):
    """The same but for Pillow's computing the box's width in float32."""
    assert_within_one_level(
        filters.gaussian_blur(IMAGE, radius), PIL_IMAGE.filter(ImageFilter.GaussianBlur(radius)), share=0.002
    )


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (40, 60), (224, 224), (97, 60), (200, 131), (1, 1)])
@pytest.mark.parametrize("method, filter", [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
def test_resize(size, method, filter):
    """Pillow's weights have 22 bits, ours are float32 (TF32 products on some GPUs: more values one level off)."""
    assert_within_one_level(resize(IMAGE, size, method), PIL_IMAGE.resize(size[::-1], filter), share=0.01)


# -- geometry: whole pixels are the same; elsewhere a point on the edge of two pixels may go either way -----------------


def test_crop():
    box = Box(top=3, left=7, height=20, width=30)
    assert_same(geometry.crop(IMAGE, box), PIL_IMAGE.crop((7, 3, 37, 23)))


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(0, WIDTH - 4, 5, 5), Box(HEIGHT - 4, 0, 5, 5)])
def test_a_crop_beyond_the_image_is_a_users_mistake(box):
    with pytest.raises(UserError, match="does not fit into an image of 131x97"):
        geometry.crop(IMAGE, box)


def test_pad():
    assert_same(geometry.pad(IMAGE, 9), ImageOps.expand(PIL_IMAGE, 9))


@pytest.mark.parametrize("side, left, top", [(50, 40, 24), (97, 17, 0), (110, 10, -6), (140, -4, -21)])
def test_center_crop(side, left, top):
    """Pillow's crop beyond the border gives black, like torchvision's padding."""
    assert_same(geometry.center_crop(IMAGE, side), PIL_IMAGE.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("degrees", [0.0, 10.0, 33.3, 90.0, 123.4, 180.0, -20.0])
def test_rotate(degrees):
    assert_few_differ(geometry.rotate(IMAGE, degrees), PIL_IMAGE.rotate(degrees), share=0.002)


@pytest.mark.parametrize("degrees, translate, scale", [(45.0, (3, -7), 0.6), (30.0, (0, 0), 0.5), (69.0, (-13, 20), 0.75)])
def test_affine_is_a_turn_a_scale_and_a_shift(degrees, translate, scale):
    """The same map taken apart: the centre to the origin, turned and scaled forwards by Pillow's inverse of it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    forwards = np.array([[scale * cos, -scale * sin], [scale * sin, scale * cos]])
    center = np.array([WIDTH / 2, HEIGHT / 2])
    inverse = np.linalg.inv(forwards)
    offset = center - inverse @ (center + translate)
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    expected = PIL_IMAGE.transform((WIDTH, HEIGHT), Image.AFFINE, data, Image.NEAREST)
    ours = geometry.warp_affine(IMAGE, geometry.affine_about_center(HEIGHT, WIDTH, degrees, translate, scale))
    assert_few_differ(ours, expected, share=0.002)


@pytest.mark.parametrize("matrix", [(1.0, 0.3, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, -5.0, -0.17, 1.0, 12.0)])
def test_shear_and_shift(matrix):
    expected = PIL_IMAGE.transform((WIDTH, HEIGHT), Image.AFFINE, matrix, Image.NEAREST)
    assert_few_differ(geometry.warp_affine(IMAGE, Affine(*matrix)), expected, share=0.002)


def test_perspective():
    start = [(0, 0), (WIDTH - 1, 0), (WIDTH - 1, HEIGHT - 1), (0, HEIGHT - 1)]
    end = [(10, 20), (WIDTH - 9, 3), (WIDTH - 30, HEIGHT - 22), (5, HEIGHT - 1)]
    coefficients = geometry.perspective_coefficients(start, end)
    expected = PIL_IMAGE.transform((WIDTH, HEIGHT), Image.PERSPECTIVE, coefficients, Image.BILINEAR)
    assert_few_differ(geometry.warp_perspective(IMAGE, coefficients), expected, share=0.01)


def test_perspective_coefficients_take_end_points_to_start_points():
    start, end = [(0, 0), (99, 0), (99, 79), (0, 79)], [(10, 20), (90, 3), (70, 58), (5, 79)]
    c = geometry.perspective_coefficients(start, end)
    for (x_in, y_in), (x, y) in zip(start, end, strict=True):
        depth = c[6] * x + c[7] * y + 1
        assert (c[0] * x + c[1] * y + c[2]) / depth == pytest.approx(x_in, abs=1e-8)
        assert (c[3] * x + c[4] * y + c[5]) / depth == pytest.approx(y_in, abs=1e-8)


# -- our own -----------------------------------------------------------------------------------------------------------


def test_hide_paints_whole_cells():
    hidden = mx.array([[True, False, False], [False, False, True]])
    result, blank = geometry.hide(IMAGE, hidden), geometry.blank(IMAGE)
    assert set(map(tuple, np.array(blank).reshape(-1, 3).tolist())) == {(122, 116, 104)}
    shown = np.array(result)
    assert (shown[:48, :43] == [122, 116, 104]).all() and (shown[49:, 88:] == [122, 116, 104]).all()
    assert (shown[:48, 44:] == PICTURE[:48, 44:]).all() and (shown[49:, :87] == PICTURE[49:, :87]).all()
