"""Charts as SVG for the run's web page.

Draws the panels of `training_plots`, and scatter plots. Labels are text and colours are CSS variables, so that both follow the
page in dark mode and in print.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from mlx_visalign.data.training_log import Row
from mlx_visalign.reporting.html import Html, join, tag
from mlx_visalign.reporting.training_plots import (
    BLUE,
    GREY,
    RED,
    SMOOTHING,
    STEPS,
    Panel,
    panels_of,
    trailing_mean,
    update_ticks,
)
from mlx_visalign.utils.formatting import with_minus

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 350, 44, 186  # edges of the plot area
POINTS = 400  # approximate maximum per line
COLOURS = {BLUE: "var(--blue)", RED: "var(--red)", GREY: "var(--quiet)"}

Place = Callable[[float], float]
"""From a value to its position in the drawing."""


def curves(rows: Sequence[Row]) -> Html:
    """Training curves with a caption.

    `rows` has one or more rows, one for each update, as returned by `training_log.read_metrics`.
    """
    return join(
        tag(
            "p",
            "Horizontal axis: updates. Thin lines: single updates. Thick lines: trailing mean over 5 % of all updates.",
            cls="soft",
        ),
        drawn(panels_of(rows), rows),
    )


def scatter(title: str, below: str, groups: Mapping[str, tuple[str, Sequence[tuple[float, float]]]]) -> Html:
    """A chart of points with x from 0 to 1.

    `below`: the meaning of x. `groups` has, by what they are called, a colour of the page (blue, red) and at least one point;
    of many points only some are drawn, evenly chosen.
    """
    heights = [y for _, points in groups.values() for _, y in points]
    air = 0.06 * (max(heights) - min(heights)) or 0.5
    low, high = min(heights) - air, max(heights) + air
    across, up = _scale(0.0, 1.0, LEFT, RIGHT), _scale(low, high, BOTTOM, TOP)
    shapes = [_across(up(tick), _number(tick)) for tick in _ticks(low, high)]
    shapes += [_text(across(tick), BOTTOM + 16, _number(tick), "middle", "soft") for tick in (0.0, 0.5, 1.0)]
    for colour, points in groups.values():
        shapes += [
            tag("circle", cx=f"{across(x):.1f}", cy=f"{up(y):.1f}", r="2", style=f"fill: var(--{colour})", cls="dot")
            for x, y in points[:: math.ceil(len(points) / POINTS)]
        ]
    names = [tag("tspan", f"{name}\N{EM SPACE}", style=f"fill: var(--{colour})") for name, (colour, _) in groups.items()]
    head = (_text(0, 14, title, "start", "title"), _text(RIGHT, 32, join(*names), "end", "soft"))
    chart = tag("svg", *head, *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}; across: {below}")
    return tag("div", tag("p", f"Across: {below}.", cls="soft"), tag("div", chart, cls="curves"))


def drawn(panels: Iterable[Panel], rows: Sequence[Row]) -> Html:
    """Panels in as many columns as fit."""
    return tag("div", *(_panel(panel, rows) for panel in panels), cls="curves")


def _panel(panel: Panel, rows: Sequence[Row]) -> Html:
    values = {name: np.array([row[name] for row in rows]) for name in panel.lines}
    low, high = panel.limits or _limits(panel, values.values())
    updates = [row["iteration"] for row in rows]
    below = update_ticks(updates)
    across, up = _scale(below[0], updates[-1], LEFT, RIGHT), _scale(low, high, BOTTOM, TOP)
    shapes = [
        *(_across(up(tick), _number(tick)) for tick in _ticks(low, high)),
        *(_text(across(tick), BOTTOM + 16, _number(tick), "middle", "soft") for tick in below),
    ]
    if panel.level is not None:
        shapes.append(_line(LEFT, up(panel.level), RIGHT, up(panel.level), "level"))
    for name, (_, colour) in panel.lines.items():
        shapes += _curve(updates, values[name], across, up, COLOURS[colour])
    return tag(
        "svg",
        _text(0, 14, panel.title, "start", "title"),
        _text(RIGHT, 32, join(*_legend(panel)), "end", "soft"),
        *shapes,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=panel.title,
    )


def _limits(panel: Panel, values: Iterable[np.ndarray]) -> tuple[float, float]:
    """The range of the values and the level, with a small margin."""
    shown = np.concatenate([*values, [] if panel.level is None else [panel.level]])
    air = 0.06 * (shown.max() - shown.min()) or 0.5
    return float(shown.min() - air), float(shown.max() + air)


def _curve(updates: Sequence[int], values: np.ndarray, across: Place, up: Place, colour: str) -> list[Html]:
    smooth = trailing_mean(values, math.ceil(SMOOTHING * len(values)))
    lines = []
    for heights, kind in ((values, "thin"), (smooth, "thick")):
        step = math.ceil(len(heights) / POINTS)
        kept = [*range(0, len(heights) - 1, step), len(heights) - 1]
        points = " ".join(f"{across(updates[i]):.1f},{up(heights[i]):.1f}" for i in kept)
        lines.append(tag("polyline", points=points, cls=kind, style=f"stroke: {colour}"))
    end = tag("circle", cx=f"{across(updates[-1]):.1f}", cy=f"{up(smooth[-1]):.1f}", r="3", style=f"fill: {colour}")
    return [*lines, end]


def _legend(panel: Panel) -> list[Html]:
    named = [
        tag("tspan", f"{label}\N{EM SPACE}", style=f"fill: {COLOURS[colour]}")
        for label, colour in panel.lines.values()
        if label
    ]
    return named if panel.level is None else [*named, tag("tspan", f"- - {panel.meaning}")]


def _scale(low: float, high: float, start: float, end: float) -> Place:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    return [float(tick) for tick in MaxNLocator(5, steps=STEPS).tick_values(low, high) if low <= tick <= high]


def _number(value: float) -> str:
    return with_minus(f"{value:.3g}") if abs(value) < 1000 else f"{value:,.0f}"


def _across(y: float, label: str) -> Html:
    return join(_line(LEFT, y, RIGHT, y, "grid"), _text(LEFT - 7, y + 4, label, "end", "soft"))


def _line(x1: float, y1: float, x2: float, y2: float, cls: str) -> Html:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", cls=cls)


def _text(x: float, y: float, label: str, anchor: str, cls: str) -> Html:
    return tag("text", label, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, cls=cls)
