"""Scenes: a function of the seed, with the regularities that are documented, and pictures that show them."""

from itertools import pairwise

import numpy as np
import pytest

from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import COLOURS, RADII, SHAPES, SPLITS, TYPES, Scene, Thing, Type, partner, scene, split


def test_a_scene_depends_on_its_seed_alone():
    assert scene(7) == scene(7)
    assert np.array_equal(draw(scene(7)), draw(scene(7)))
    assert len({scene(seed).things for seed in range(50)}) > 45


def test_splits_do_not_overlap():
    seeds = sorted((seeds.start, seeds.stop) for seeds in SPLITS.values())
    assert all(stop <= start for (_, stop), (start, _) in pairwise(seeds))
    assert [s.seed for s in split("validation", 2, start=3)] == [2_000_003, 2_000_004]


def test_partners_come_in_pairs_that_differ_in_colour_and_shape():
    for type in TYPES:
        assert partner(partner(type)) == type
        assert partner(type).colour != type.colour
        assert partner(type).shape != type.shape


def test_partners_are_there_about_half_of_the_time():
    scenes = list(split("pretraining", 1000))
    present = [partner(type) in sample.types for sample in scenes for type in sample.types]
    assert 0.45 < np.mean(present) < 0.57


def test_one_to_five_things_in_cells_of_their_own_in_reading_order():
    for sample in split("pretraining", 200):
        cells = [thing.cell for thing in sample.things]
        assert 1 <= len(cells) <= 5
        assert cells == sorted(set(cells))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_in_its_cell_in_its_colour(shape):
    empty = draw(Scene(3, ())).astype(int)
    drawn = draw(Scene(3, (Thing(Type("red", shape), "large", 4),))).astype(int)
    assert abs(drawn[24, 24] - np.array(COLOURS["red"])).max() < 60
    beside = np.concatenate([drawn[:14].ravel(), drawn[34:].ravel()])
    assert beside.max() < 100  # the background is dark
    assert empty.shape == drawn.shape == (48, 48, 3)


def test_shapes_and_sizes_cover_different_areas():
    def area(shape: str, size: str) -> int:
        image = draw(Scene(5, (Thing(Type("white", shape), size, 4),)))
        return int((image.min(axis=2) > 150).sum())

    areas = {(shape, size): area(shape, size) for shape in SHAPES for size in RADII}
    for shape in SHAPES:
        assert 1.8 * areas[shape, "small"] < areas[shape, "large"]
    assert areas["star", "large"] < areas["circle", "large"]
