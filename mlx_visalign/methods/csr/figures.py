"""A sentence tree as a picture, and as HTML.

Levels run from left to right; every sentence has its scores, and the paths of the two answers are coloured. The HTML cuts
no text off.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from PIL import Image

from mlx_visalign.data.training_log import Row
from mlx_visalign.methods.csr.rewards import Sentence, Tree
from mlx_visalign.reporting.contact_sheet import Caption, Cell, Span
from mlx_visalign.reporting.fonts import families, showable, squares
from mlx_visalign.reporting.html import Html, gallery, join, paragraphs, tag
from mlx_visalign.reporting.svg_plots import drawn
from mlx_visalign.reporting.training_plots import BLUE, GREY, RED, Panel, plot_panels
from mlx_visalign.utils.files import replacing
from mlx_visalign.utils.formatting import with_minus

# Inches.
BOX, COLUMN, LINE, PADDING, GAP, FAMILY_GAP, PICTURE = 2.55, 3.05, 0.15, 0.06, 0.07, 0.16, 2.3
CHARACTERS, MOST_LINES = 42, 3  # of a box's text
PER_INCH = 13  # characters of the legend
QUIET, PALE, INK = "#8a8a8a", "#c9c9c9", "#1a1a1a"
COLOURS = {"chosen": BLUE, "rejected": RED}
STYLES = {BLUE: "solid", RED: "dashed", PALE: "solid"}
END = "(end)"
LEGEND = (
    "fit: the judge's score of the sentence. log p: mean log-probability per token. \N{MULTIPLICATION SIGN} 3: sampled "
    "three times. (end): the answer ends here. Grey: not continued. Struck out: broken."
)
DRAWN = {"chosen": "Blue", "rejected": "Red, dashed"}
DOTS = {"chosen": "\N{BLACK CIRCLE}", "rejected": "\N{BLACK DIAMOND}"}


@dataclass(frozen=True)
class _Box:
    """A sentence's box: left edge, vertical centre, and lines of text, the last one in small print."""

    x: float
    y: float
    lines: tuple[str, ...]

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + 2 * PADDING


def draw_tree(tree: Tree, image: Image.Image, title: str, path: Path) -> None:
    """Draw the tree as a PNG.

    The chosen answer is blue, the rejected one red, sentences that were not continued grey.
    """
    with rc_context({"font.family": families()}), replacing(path) as unfinished:
        _figure(tree, image, title).savefig(unfinished, format="png", dpi=110)


def _figure(tree: Tree, image: Image.Image, title: str) -> Figure:
    boxes = _layout(tree)
    width = PICTURE + 0.5 + COLUMN * (1 + max(len(tree.path(place)) - 1 for place in boxes))
    bottom = min([box.y - box.height / 2 for box in boxes.values()] + [-PICTURE / 2 - 1.2])
    top = max([box.y + box.height / 2 for box in boxes.values()] + [PICTURE / 2])
    figure = Figure(figsize=(width, top - bottom + 1.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.2, width - 0.2), ylim=(bottom - 0.3, top + 1.1))
    axes.axis("off")
    axes.text(0, top + 0.85, title, fontsize=14, fontweight="bold", color=INK)
    explained = f"{_explained(tree, DRAWN)} {squares([tree.prompt, *(sentence.text for sentence in tree.sentences)])}"
    axes.text(0, top + 0.75, textwrap.fill(explained, int(PER_INCH * width)), fontsize=9, va="top", color=INK)
    _draw_root(axes, tree, image)
    for place, box in boxes.items():
        _draw_edge(axes, tree, boxes, place, box)
    for place, box in boxes.items():
        _draw_box(axes, tree, place, box)
    return figure


def _explained(tree: Tree, looks: Mapping[str, str]) -> str:
    """The legend. `looks`: how the chosen and the rejected answer are marked."""
    if tree.chosen is None or tree.rejected is None:
        return f"No two different complete answers. {LEGEND}"
    best, worst = (tree.sentences[place].total or 0.0 for place in (tree.chosen, tree.rejected))
    sides = f"{looks['chosen']}: the chosen answer, reward {best:.2f}. {looks['rejected']}: the rejected one, {worst:.2f}."
    return f"{with_minus(sides)} {LEGEND}"


def _layout(tree: Tree) -> dict[int, _Box]:
    """Every level is a column centred at 0, its sentences in the order of their parents, with gaps between families."""
    levels: dict[int, list[int]] = {}
    equals = _drawn(tree)
    for place in equals:
        levels.setdefault(len(tree.path(place)), []).append(place)
    boxes: dict[int, _Box] = {}
    for level, places in levels.items():
        places.sort(key=lambda place: (-_parents_height(tree, place, boxes), place))
        x = PICTURE + 0.5 + (level - 1) * COLUMN
        column = {place: _Box(x, 0.0, _lines(tree.sentences[place], equals[place])) for place in places}
        gaps = [_gap(tree, before, after) for before, after in pairwise(places)] + [0.0]
        y = (sum(box.height for box in column.values()) + sum(gaps)) / 2
        for (place, box), gap in zip(column.items(), gaps, strict=True):
            boxes[place] = _Box(x, y - box.height / 2, box.lines)
            y -= box.height + gap
    return boxes


def _drawn(tree: Tree) -> dict[int, int]:
    """The sentences to draw, each with the number of streams that sampled it: equal leaves of a parent are drawn once."""
    paths = {*tree.path(tree.chosen), *tree.path(tree.rejected)}
    shown: dict[int, int] = {}
    leaves: dict[tuple[int, tuple[int, ...]], int] = {}
    # Sentences on a path come first, so that of equal ones they are the ones drawn.
    for place in sorted(range(len(tree.sentences)), key=lambda place: place not in paths):
        sentence = tree.sentences[place]
        first = place if sentence.fate == "grown" else leaves.setdefault((sentence.parent, sentence.ids), place)
        shown[first] = shown.get(first, 0) + 1
    return dict(sorted(shown.items()))


def _parents_height(tree: Tree, place: int, boxes: dict[int, _Box]) -> float:
    parent = tree.sentences[place].parent
    return boxes[parent].y if parent in boxes else 0.0


def _gap(tree: Tree, before: int, after: int) -> float:
    return GAP if tree.sentences[before].parent == tree.sentences[after].parent else FAMILY_GAP


def _lines(sentence: Sentence, streams: int) -> tuple[str, ...]:
    scores = _scores(sentence) + _times(streams)
    if not sentence.text:
        return (f"{END}\N{EM SPACE}{scores}",)
    text = showable(" ".join(sentence.text.split()))
    return (*textwrap.wrap(text, CHARACTERS, max_lines=MOST_LINES, placeholder=" …"), scores)


def _times(streams: int) -> str:
    return f"\N{EM SPACE}\N{MULTIPLICATION SIGN} {streams}" if streams > 1 else ""


def _scores(sentence: Sentence) -> str:
    parts = [] if sentence.image is None else [f"fit {sentence.image:z.1f}"]
    parts.append(f"log p {sentence.logp / len(sentence.ids):z.2f}")
    if sentence.reward is not None:
        parts.append(f"reward {sentence.reward:z.2f}")
    return with_minus("\N{EM SPACE}".join(parts))


def _sides(tree: Tree, place: int) -> list[str]:
    """The answers whose path the sentence lies on."""
    ends = {"chosen": tree.chosen, "rejected": tree.rejected}
    return [side for side, end in ends.items() if place in tree.path(end)]


def _colours(tree: Tree, place: int) -> list[str]:
    return [COLOURS[side] for side in _sides(tree, place)]


def _draw_root(axes: Axes, tree: Tree, image: Image.Image) -> None:
    half = PICTURE / 2
    fit = min(PICTURE / image.width, PICTURE / image.height)
    width, height = image.width * fit, image.height * fit
    axes.imshow(
        np.asarray(image.convert("RGB")), extent=(0, width, -height / 2, height / 2), interpolation="nearest", aspect="auto"
    )
    axes.text(0, -half - 0.12, textwrap.fill(showable(tree.prompt), 36), fontsize=9, va="top", color=INK)


def _draw_edge(axes: Axes, tree: Tree, boxes: dict[int, _Box], place: int, box: _Box) -> None:
    parent = boxes.get(tree.sentences[place].parent)
    start = (PICTURE, 0.0) if parent is None else (parent.x + BOX, parent.y)
    middle = (start[0] + box.x) / 2
    curve = Curve([start, (middle, start[1]), (middle, box.y), (box.x, box.y)], [1, 4, 4, 4])
    colours = _colours(tree, place)
    for shift, colour in enumerate(colours or [PALE]):
        width = 0.8 if not colours else 2.6 - 1.2 * shift
        look: dict[str, Any] = {"edgecolor": colour, "linewidth": width, "linestyle": STYLES[colour]}
        axes.add_patch(PathPatch(curve, fill=False, zorder=1 + len(colours), **look))


def _draw_box(axes: Axes, tree: Tree, place: int, box: _Box) -> None:
    sentence, colours = tree.sentences[place], _colours(tree, place)
    bottom = box.y - box.height / 2
    for shift, colour in enumerate(colours or [PALE]):
        inset = 0.035 * shift
        axes.add_patch(
            FancyBboxPatch(
                (box.x + inset, bottom + inset),
                BOX - 2 * inset,
                box.height - 2 * inset,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor="white" if sentence.fate in ("grown", "final") else "#f4f4f4",
                edgecolor=colour,
                linewidth=1.8 if colours else 0.8,
                linestyle=STYLES[colour],
                zorder=4,
            )
        )
    ink = INK if colours or sentence.fate in ("grown", "final") else QUIET
    y = box.y + box.height / 2 - PADDING
    *said, scores = box.lines
    for line in said:
        text = "".join(f"{c}\u0336" for c in line) if sentence.fate == "broken" else line
        axes.text(box.x + 0.08, y, text.replace("$", r"\$"), fontsize=8.4, va="top", color=ink, zorder=5)
        y -= LINE
    axes.text(box.x + 0.08, y, scores, fontsize=7.2, va="top", color=QUIET, zorder=5)


def plot_rounds(rounds: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the pairs' reward, image score and length over rounds."""
    plot_panels(*_over_rounds(rounds), path, "round")


def rounds_in_html(rounds: Sequence[dict[str, Any]]) -> Html:
    """What `plot_rounds` draws, as HTML."""
    return join(tag("h3", "Over the rounds"), drawn(*_over_rounds(rounds)))


def _over_rounds(rounds: Sequence[dict[str, Any]]) -> tuple[list[Panel], list[Row]]:
    """The panels, and one row per round."""
    titles = {"reward": "Reward of an answer", "image_score": "Image score", "tokens": "Tokens of an answer"}
    sides = COLOURS | {"all": GREY}
    panels = [
        Panel(title, {f"{name} {side}": (side, sides[side]) for side in sides if side in rounds[0][name]})
        for name, title in titles.items()
    ]
    numbers = [{f"{name} {side}": one[name][side] for name in titles for side in one[name]} for one in rounds]
    return panels, [{"iteration": one["round"], **row} for one, row in zip(rounds, numbers, strict=True)]


def fragment(tree: Tree, image: Image.Image, title: str) -> Html:
    """The tree as an HTML fragment.

    The image with its two answers, and nested lists, open along the paths of the two.
    """
    answers = (("asked", tree.prompt), ("chosen", tree.chosen_text), ("rejected", tree.rejected_text))
    cell = Cell(image, tuple(Caption(heading, (Span(text),)) for heading, text in answers if text))
    top = _list(tree, _drawn(tree), -1, "tree")
    return join(tag("h3", title), paragraphs([_explained(tree, DOTS)], "soft"), gallery([cell]), top)


def _list(tree: Tree, equals: dict[int, int], parent: int, cls: str) -> Html:
    children = [place for place in equals if tree.sentences[place].parent == parent]
    return tag("ul", *(tag("li", _item(tree, equals, place)) for place in children), cls=cls) if children else Html()


def _item(tree: Tree, equals: dict[int, int], place: int) -> Html:
    """A sentence, with its children in a list that can be opened."""
    below = _list(tree, equals, place, "")
    if not below:
        return _said(tree, place, equals[place])
    on_path = {"open": ""} if _sides(tree, place) else {}
    return tag("details", tag("summary", _said(tree, place, equals[place])), below, **on_path)


def _said(tree: Tree, place: int, streams: int) -> Html:
    sentence, sides = tree.sentences[place], _sides(tree, place)
    look = "on-path" if sides else "" if sentence.fate in ("grown", "final") else "left"
    dots = [tag("span", f"{DOTS[side]} ", cls=side, title=side) for side in sides]
    text = tag("s" if sentence.fate == "broken" else "span", sentence.text or END, cls=look)
    return join(*dots, text, " ", tag("small", _scores(sentence) + _times(streams)))
