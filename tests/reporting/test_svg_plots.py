"""The curves of a page: every line is there, inside its plane, whatever the numbers are."""

import re

import pytest

from mlx_visalign.reporting.svg_plots import BOTTOM, HEIGHT, LEFT, POINTS, RIGHT, TOP, curves
from mlx_visalign.reporting.training_plots import PANELS


def rows(values, names):
    return [{"iteration": update, **dict.fromkeys(names, value)} for update, value in enumerate(values, 1)]


EVERYTHING = [name for panel in PANELS for name in panel.lines]


@pytest.mark.parametrize("values", [[0.7], [3.0, 3.0], [1.0, -2.0, 0.5], [1e6, 2e6], [float(i % 7) for i in range(3000)]])
def test_a_panel_for_each_metric_with_lines_inside(values):
    drawn = curves(rows(values, EVERYTHING))
    assert drawn.count("<svg") == len(PANELS) and drawn.count("<polyline") == 2 * len(EVERYTHING)
    for panel in PANELS:
        assert panel.title in drawn and panel.meaning in drawn
    for line in re.findall('points="([^"]+)"', curves(rows(values, ["train_loss", "margin"]))):
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        assert len(points) <= POINTS + 1 and points[-1][0] == RIGHT
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM < HEIGHT for x, y in points)


def test_colours_are_the_pages():
    assert not re.search("#[0-9a-f]{6}", curves(rows([1.0, 2.0], EVERYTHING)))
