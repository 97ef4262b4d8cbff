"""The curves of a training: which panels are drawn, and what the thick line is."""

import numpy as np
import pytest
from PIL import Image

from mlx_visalign.reporting.training_plots import PANELS, ROLLOUT_PANELS, plot_training, trailing_mean, update_ticks


def rows(updates, names):
    return [{"iteration": step + 1, **{name: float(step) for name in names}} for step in range(updates)]


@pytest.mark.parametrize("panels", [PANELS, ROLLOUT_PANELS])
@pytest.mark.parametrize("updates", [1, 60])
def test_a_panel_for_each_metric_there_is(tmp_path, updates, panels):
    everything = [name for panel in panels for name in panel.lines]
    plot_training(rows(updates, everything), tmp_path / "plots" / "all.png")
    plot_training(rows(updates, [*panels[0].lines]), tmp_path / "one.png")
    whole, one = (Image.open(tmp_path / name) for name in ("plots/all.png", "one.png"))
    assert abs(whole.width - 3 * one.width) <= 3 and abs(whole.height - 2 * one.height) <= 3
    assert len(whole.getcolors(1 << 20)) > 10


@pytest.mark.parametrize(
    ("updates", "ticks"), [([1], [0, 1]), ([1, 2], [1, 2]), (range(1, 25), [1, 5, 10, 15, 20]), ([7, 300], [7, 100, 200, 300])]
)
def test_the_axis_starts_with_the_first_update(updates, ticks):
    assert update_ticks([*updates]) == ticks


def test_trailing_mean():
    np.testing.assert_allclose(trailing_mean(np.array([1.0, 2.0, 6.0, 1.0]), 3), [1, 1.5, 3, 3])
    np.testing.assert_allclose(trailing_mean(np.array([4.0, 2.0]), 1), [4, 2])
