"""Training curves as PNG, drawn from metrics.jsonl."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlx_visalign.data.training_log import Row
from mlx_visalign.utils.files import replacing

COLUMNS = 3
PANEL_SIZE = (5.0, 3.3)  # inches
STEPS = (1, 2, 2.5, 5, 10)  # between ticks of an axis
SMOOTHING = 0.05  # the thick line is the trailing mean over this share of the updates
BLUE, RED, GREY = "#1f5fa8", "#c8322b", "#8a8a8a"

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 11,
}


@dataclass(frozen=True)
class Panel:
    """One plot.

    lines    metric -> label and colour
    level    a reference level, drawn as a dashed line
    meaning  the level's label
    limits   the ends of the y axis
    """

    title: str
    lines: dict[str, tuple[str, str]]
    level: float | None = None
    meaning: str = ""
    limits: tuple[float, float] | None = None


PANELS = (
    Panel("Loss", {"train_loss": ("", BLUE)}, math.log(2), "ln 2: nothing learned"),
    Panel("Reward accuracy", {"accuracy": ("", BLUE)}, 0.5, "a coin", (0, 1.04)),
    Panel("Reward margin", {"margin": ("", BLUE)}, 0.0, "no preference"),
    Panel(
        "Rewards",
        {"chosen_reward": ("chosen", BLUE), "rejected_reward": ("rejected", RED)},
        0.0,
        "reference",
    ),
    Panel("Answer tokens", {"chosen_length": ("chosen", BLUE), "rejected_length": ("rejected", RED)}),
    Panel("Gradient norm, before clipping", {"grad_norm": ("", BLUE)}),
)
ROLLOUT_PANELS = (
    Panel("Reward of an answer", {"reward": ("", BLUE)}),
    Panel("KL of an answer, in nats", {"kl": ("", BLUE)}, 0.0, "reference"),
    Panel("Ratios that were clipped, share", {"clip_fraction": ("", BLUE)}),
    Panel("Answer tokens", {"length": ("", BLUE)}),
    Panel("Objects named in an answer", {"mentions": ("", BLUE)}),
    Panel("Gradient norm, before clipping", {"grad_norm": ("", BLUE)}),
)


def plot_training(rows: Sequence[Row], path: Path) -> None:
    """Draw the panels for the rows' metrics as a PNG.

    `rows` has one row for each update, as returned by `training_log.read_metrics`. Thin lines are the values of single updates,
    thick ones the trailing mean over 5 % of all updates.
    """
    below = "update   (thin: single updates, thick: trailing mean over 5 % of all updates)"
    plot_panels(panels_of(rows), rows, path, below)


def plot_panels(panels: Sequence[Panel], rows: Sequence[Row], path: Path, below: str) -> None:
    """Draw panels side by side, with a label below."""
    import matplotlib

    columns = min(COLUMNS, len(panels))
    height = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * PANEL_SIZE[0], height * PANEL_SIZE[1]), layout="constrained")
        for index, panel in enumerate(panels):
            _draw(figure.add_subplot(height, columns, index + 1), panel, rows)
        figure.supxlabel(below, fontsize=11)
        with replacing(path) as unfinished:
            figure.savefig(unfinished, format="png", dpi=150)


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """The panels whose metrics are in the rows."""
    kind = ROLLOUT_PANELS if "reward" in rows[0] else PANELS
    return [panel for panel in kind if panel.lines.keys() <= rows[0].keys()]


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    axes.set_title(panel.title)
    updates = [row["iteration"] for row in rows]
    window = math.ceil(SMOOTHING * len(rows))
    for name, (label, colour) in panel.lines.items():
        values = np.array([row[name] for row in rows])
        axes.plot(updates, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(updates, trailing_mean(values, window), "o-", color=colour, linewidth=2, markevery=[-1], label=label)
    if panel.level is not None:
        axes.axhline(panel.level, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=panel.meaning)
    if panel.level is not None or len(panel.lines) > 1:  # level with the title, above all curves
        axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.97), ncols=3, handlelength=1.2, columnspacing=1)
    axes.margins(y=0.12)
    ticks = update_ticks(updates)
    axes.set_xticks(ticks)
    axes.set_xlim(ticks[0], updates[-1] + 0.02 * (updates[-1] - ticks[0]))
    if panel.limits:
        axes.set_ylim(panel.limits)


def update_ticks(updates: Sequence[int]) -> list[int]:
    """Ticks of the x axis, its start first.

    It starts at the first update, or at 0 if there is only one.
    """
    start = updates[0] if len(updates) > 1 else 0
    between = MaxNLocator(5, integer=True, steps=STEPS).tick_values(start, updates[-1])
    return sorted({start, *(int(tick) for tick in between if start <= tick <= updates[-1])})


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over each value and its predecessors, `window` in total.

    Fewer at the start.
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
