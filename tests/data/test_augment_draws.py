"""The random operations: ranges, rates, keys. The operations they end in are compared with Pillow elsewhere."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.data.augment import color, draws, filters, geometry, policies
from mlx_visalign.data.augment.draws import random_box
from mlx_visalign.utils.errors import UserError

IMAGE = mx.array(np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8))


def keys(count: int) -> list[mx.array]:
    return list(mx.random.split(mx.random.key(0), count))


def spy(monkeypatch, module, name) -> list[tuple]:
    """The arguments, without the image, of every call of `module.name`, which still does its work."""
    calls, original = [], getattr(module, name)

    def record(*arguments):
        calls.append(arguments[1:])
        return original(*arguments)

    monkeypatch.setattr(module, name, record)
    return calls


def assert_uniform(values, low: float, high: float):
    """A few hundred values fill the range and have its mean and spread."""
    assert low <= min(values) and max(values) <= high
    width = high - low
    assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.08 * width)
    assert np.std(values) == pytest.approx(width / math.sqrt(12), rel=0.12)


def test_uniform_and_integer():
    assert_uniform([draws.uniform(key, -2.0, 5.0) for key in keys(300)], -2, 5)
    drawn = [draws.integer(key, 3, 6) for key in keys(100)]
    assert set(drawn) == {3, 4, 5}


def test_maybe_flips_half_the_time():
    flipped = [mx.array_equal(draws.maybe(geometry.flip, IMAGE, key), geometry.flip(IMAGE)).item() for key in keys(200)]
    assert 80 <= sum(flipped) <= 120


def test_random_box_has_the_area_and_the_ratio():
    boxes = [random_box(key, 480, 640, (0.36, 0.64)) for key in keys(300)]
    assert_uniform([box.height * box.width / (480 * 640) for box in boxes], 0.358, 0.642)
    ratios = [box.width / box.height for box in boxes]
    assert 0.745 <= min(ratios) < 0.8 and 1.25 < max(ratios) <= 1.34
    assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.03)
    for box in boxes:
        assert 0 <= box.top <= 480 - box.height and 0 <= box.left <= 640 - box.width


@pytest.mark.parametrize(
    "height, width, box", [(50, 1000, (0, 466, 50, 67)), (1000, 60, (460, 0, 80, 60)), (1, 1, (0, 0, 1, 1))]
)
def test_random_box_falls_back_to_the_centre(height, width, box):
    assert random_box(mx.random.key(0), height, width, (0.9, 1.0)) == box


def test_random_crop_goes_everywhere_and_needs_room():
    places = {(draws._place(key, 24, 30, 20, 20).top, draws._place(key, 24, 30, 20, 20).left) for key in keys(300)}
    assert {top for top, _ in places} == set(range(5)) and {left for _, left in places} == set(range(11))
    assert draws.random_crop(IMAGE, mx.random.key(0), 24).shape == (24, 24, 3)
    with pytest.raises(UserError, match="does not fit"):
        draws.random_crop(IMAGE, mx.random.key(0), 25)


def test_random_resized_crop_of_the_whole_image_is_a_resize(monkeypatch):
    monkeypatch.setattr(draws, "random_box", lambda key, height, width, area: geometry.Box(0, 0, height, width))
    ours = draws.random_resized_crop(IMAGE, mx.random.key(0), 16, (0.5, 1.0))
    assert mx.array_equal(ours, draws.resize(IMAGE, (16, 16)))


def test_rotation_and_affine_ranges(monkeypatch):
    turns, maps = spy(monkeypatch, geometry, "rotate"), spy(monkeypatch, geometry, "affine_about_center")
    for key in keys(200):
        draws.random_rotation(IMAGE, key)
    assert_uniform([degrees for (degrees,) in turns], 0, 180)
    maps.clear()  # rotate is itself an affine map
    for key in keys(200):
        draws.random_affine(IMAGE, key)
    widths, angles, shifts, scales = zip(*maps, strict=True)
    assert set(widths) == {30}
    assert_uniform(angles, 30, 70)
    assert_uniform(scales, 0.5, 0.75)
    assert {x for x, _ in shifts} == set(range(-3, 4)) and {y for _, y in shifts} == set(range(-7, 8))
    assert abs(np.corrcoef(angles, scales)[0, 1]) < 0.2


def test_perspective_moves_corners_inwards(monkeypatch):
    ends = spy(monkeypatch, geometry, "perspective_coefficients")
    for key in keys(200):
        draws.random_perspective(IMAGE, key)
    corners = np.array([end for (end,) in ends])  # [200, 4, 2]; up to int(.6 * 15) = 9 across and int(.6 * 12) = 7 down
    assert corners.min(axis=0).tolist() == [[0, 0], [20, 0], [20, 16], [0, 16]]
    assert corners.max(axis=0).tolist() == [[9, 7], [29, 7], [29, 23], [9, 23]]


@pytest.mark.parametrize("hue", [0.1, 0.4])
def test_color_jitter(monkeypatch, hue):
    names = ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"]
    order: list[str] = []
    factors: dict[str, list[float]] = {name: [] for name in names}
    for name in names:

        def record(image, factor, name=name):
            order.append(name)
            factors[name].append(factor)
            return image

        monkeypatch.setattr(color, name, record)
    for key in keys(200):
        draws.color_jitter(IMAGE, key, hue)
    for name in names:
        assert_uniform(factors[name], *((-hue, hue) if name == "adjust_hue" else (0.6, 1.4)))
    rounds = [tuple(order[start : start + 4]) for start in range(0, 800, 4)]
    assert len(set(rounds)) == 24 and all(set(each) == set(names) for each in rounds)
    assert abs(np.corrcoef(factors["adjust_brightness"], factors["adjust_contrast"])[0, 1]) < 0.2


def test_blur_range(monkeypatch):
    radii = spy(monkeypatch, filters, "gaussian_blur")
    for key in keys(200):
        draws.random_blur(IMAGE, key)
    assert_uniform([radius for (radius,) in radii], 0.1, 2.0)


def test_mask_hides_three_cells_in_ten():
    hidden = [mx.all(draws.random_mask(IMAGE, key) == geometry.blank(IMAGE), axis=-1).mean().item() for key in keys(100)]
    assert np.mean(hidden) == pytest.approx(0.3, abs=0.03)


def test_contrastive_views_turn_grey_one_time_in_five(monkeypatch):
    blurs = spy(monkeypatch, filters, "gaussian_blur")
    views = [draws.contrastive_and_blur(IMAGE, key, 8, (0.2, 1.0)) for key in keys(150)]
    grey = [mx.array_equal(view, color.grayscale(view)).item() for view in views]
    assert 18 <= sum(grey) <= 42
    assert len(blurs) == 150


def test_auto_augment_follows_its_policy(monkeypatch):
    assert len(policies.IMAGENET_POLICY) == 25
    applied = []
    for name in policies.OPERATIONS:
        monkeypatch.setitem(policies.OPERATIONS, name, lambda image, s, name=name: applied.append((name, s)) or image)
    monkeypatch.setattr(policies, "IMAGENET_POLICY", [(("rotate", 0.8, 9), ("solarize", 0.25, 3))])
    for key in keys(400):
        policies.auto_augment(IMAGE, key)
    strengths = [strength for name, strength in applied if name == "rotate"]
    assert set(strengths) == {1.0, -1.0} and len(strengths) == pytest.approx(320, abs=24)
    assert sum(strengths) == pytest.approx(0, abs=54)
    solarized = [strength for name, strength in applied if name == "solarize"]
    assert set(solarized) == {3 / 9} and len(solarized) == pytest.approx(100, abs=26)


def test_rand_augment_draws_two_of_fourteen(monkeypatch):
    applied = []
    for name in policies.OPERATIONS:
        monkeypatch.setitem(policies.OPERATIONS, name, lambda image, s, name=name: applied.append((name, s)) or image)
    for key in keys(200):
        policies.rand_augment(IMAGE, key)
    assert len(applied) == 400
    assert {name for name, _ in applied} == set(policies.OPERATIONS) - {"invert"}
    for name, strength in set(applied):
        assert abs(strength) == 0.3 and (strength > 0 or name in policies.SIGNED)


def test_operations_scale_with_their_strength():
    """Torchvision's ranges: shear .3, shift 150/331 of the image, 30 degrees, factors 1 +- .9, 4 bits, threshold 255."""
    operate = policies.OPERATIONS
    assert mx.array_equal(operate["translate-x"](IMAGE, 0.5)[:, 6:], IMAGE[:, :-6])
    assert mx.array_equal(operate["translate-y"](IMAGE, -0.5)[:-5], IMAGE[5:])
    assert mx.array_equal(operate["shear-x"](IMAGE, 1.0)[10, :-3], IMAGE[10, 3:])
    assert mx.array_equal(operate["shear-y"](IMAGE, 1.0)[:-3, 10], IMAGE[3:, 10])
    assert mx.array_equal(operate["rotate"](IMAGE, -0.5), geometry.rotate(IMAGE, -15.0))
    assert mx.array_equal(operate["brightness"](IMAGE, -1.0), color.adjust_brightness(IMAGE, 0.1))
    assert mx.array_equal(operate["color"](IMAGE, 1.0), color.adjust_saturation(IMAGE, 1.9))
    assert mx.array_equal(operate["contrast"](IMAGE, 1.0), color.adjust_contrast(IMAGE, 1.9))
    assert mx.array_equal(operate["sharpness"](IMAGE, 1.0), filters.adjust_sharpness(IMAGE, 1.9))
    assert mx.array_equal(operate["posterize"](IMAGE, 8 / 9), color.posterize(IMAGE, 4))
    assert mx.array_equal(operate["posterize"](IMAGE, 5 / 9), color.posterize(IMAGE, 6))
    assert mx.array_equal(operate["solarize"](IMAGE, 0.6), color.solarize(IMAGE, 102.0))
    assert mx.array_equal(operate["identity"](IMAGE, 0.3), IMAGE)
