"""The labels a recipe uses, and that every augmentation behaves: sizes, dtype, keys."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.data.augment import AUGMENTATIONS, diffuse, parse_view
from mlx_visalign.utils.errors import UserError

IMAGE = mx.array(np.random.default_rng(0).integers(10, 240, (60, 70, 3)).astype(np.uint8))
RESIZED = {"pad": (74, 84), "center-crop": (18, 18)} | dict.fromkeys(
    ["random-crop", "crop", "moco", "byol", "simclr"], (32, 32)
)
NO_KEY_NEEDED = {"pad", "center-crop", "grayscale", "blank"}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_sizes_follow_the_models_image_size(name):
    """At 48 pixels SeVa's 50, 128 and 224 of 336 are 7, 18 and 32; what does not crop or pad keeps the image's size."""
    view = parse_view(name).of_image(IMAGE, mx.random.key(0), 48)
    assert view.dtype == mx.uint8
    assert view.shape == (*RESIZED.get(name, (60, 70)), 3)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_key_decides(name):
    augment = AUGMENTATIONS[name]
    views = [augment(IMAGE, mx.random.key(seed), 48) for seed in (*range(12), 0)]
    assert mx.array_equal(views[0], views[-1])
    assert any(not mx.array_equal(views[0], view) for view in views) == (name not in NO_KEY_NEEDED)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - {"random-crop"}))
def test_an_image_of_one_pixel_is_no_trouble(name):
    view = AUGMENTATIONS[name](mx.array([[[1, 2, 3]]], dtype=mx.uint8), mx.random.key(0), 48)
    assert np.array(view).ndim == 3


def test_grayscale_has_three_equal_channels():
    view = AUGMENTATIONS["grayscale"](IMAGE, mx.random.key(0), 48)
    assert mx.array_equal(view[..., 0], view[..., 1]) and mx.array_equal(view[..., 0], view[..., 2])


def test_diffusion_changes_the_pixels_and_nothing_else_does():
    pixels, key = mx.ones((4, 4, 3)), mx.random.key(3)
    noisy = parse_view("diffusion-500")
    assert mx.array_equal(noisy.of_pixels(pixels, key), diffuse(pixels, 500, key))
    assert noisy.of_image(IMAGE, key, 48) is IMAGE
    assert parse_view("moco").of_pixels(pixels, key) is pixels


def test_clean_changes_nothing():
    view, pixels, key = parse_view("clean"), mx.ones((4, 4, 3)), mx.random.key(0)
    assert view.of_image(IMAGE, key, 48) is IMAGE and view.of_pixels(pixels, key) is pixels


@pytest.mark.parametrize("label", ["diffusion-0", "diffusion-999", "center-crop", "clean"])
def test_a_view_knows_its_label(label):
    assert parse_view(label).label == label


@pytest.mark.parametrize(
    "label", ["", "Crop", "diffusion", "diffusion-", "diffusion-1000", "diffusion--1", "diffusion-²", "blur-3"]
)
def test_an_unknown_label_is_answered_with_the_known_ones(label):
    with pytest.raises(UserError, match=r"diffusion-STEP with a step from 0 to 999.*crop.*moco"):
        parse_view(label)
