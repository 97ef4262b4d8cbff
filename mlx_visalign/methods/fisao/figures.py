"""Pictures of rewards: coloured answers, and the scorer's calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mlx_visalign.methods.fisao.calibration import Calibration, Scored
from mlx_visalign.reporting.contact_sheet import Caption, Cell, Span, contact_sheet
from mlx_visalign.reporting.html import Html, gallery
from mlx_visalign.reporting.training_plots import BLUE, RED, STYLE
from mlx_visalign.training.trajectory import Rewarded
from mlx_visalign.utils.files import replacing
from mlx_visalign.utils.formatting import with_minus

GOOD, BAD, NOTHING = (130, 185, 240), (245, 140, 130), (228, 228, 228)  # backgrounds at a reward of 1, -1 and 0
COLUMNS = 3
EDGE = "\N{NO-BREAK SPACE}"  # within a colour of the scale


@dataclass(frozen=True)
class RewardedAnswer:
    """An answer, its heading ("before"), and its rewarded words."""

    heading: str
    text: str
    rewarded: tuple[Rewarded, ...]


@dataclass(frozen=True)
class RewardedImage:
    """An image and some answers about it."""

    image: Image.Image
    answers: tuple[RewardedAnswer, ...]


def shade(reward: float) -> str:
    """A reward's background colour.

    Grey at 0, blue at 1, red at -1.
    """
    share, end = min(1.0, abs(reward)), GOOD if reward > 0 else BAD
    red, green, blue = (round(zero + share * (full - zero)) for zero, full in zip(NOTHING, end, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def coloured(answer: RewardedAnswer) -> tuple[Span, ...]:
    """The answer's text with rewarded words coloured.

    Each is followed by its reward.
    """
    spans, at = [], 0
    for part in answer.rewarded:
        spans.append(Span(answer.text[at : part.start]))
        spans.append(Span(answer.text[part.start : part.end], background=shade(part.reward)))
        spans.append(Span(f" {_signed(part.reward)}", "quiet"))
        at = part.end
    return (*spans, Span(answer.text[at:]))


def _signed(reward: float) -> str:
    return with_minus(f"{reward:+z.1f}")


def words_sheet(images: Sequence[RewardedImage], title: str, legend: str) -> Image.Image:
    """A sheet of images and answers with rewarded words coloured."""
    return contact_sheet(_cells(images), min(COLUMNS, len(images)), title, _scale(legend))


def words_gallery(images: Sequence[RewardedImage], legend: str) -> Html:
    """What `words_sheet` draws, as HTML."""
    return gallery(_cells(images), _scale(legend))


def _cells(images: Sequence[RewardedImage]) -> list[Cell]:
    return [Cell(one.image, tuple(Caption(answer.heading, coloured(answer)) for answer in one.answers)) for one in images]


def _scale(legend: str) -> list[Caption]:
    scale = [Span(f"{EDGE}{_signed(reward)}{EDGE}", background=shade(reward)) for reward in (-1, -0.5, 0, 0.5, 1)]
    return [Caption("reward", (*scale, Span(f" {legend}")))]


def draw_calibration(rows: Sequence[Scored], found: Calibration, reward: Callable[[float], float], path: Path) -> None:
    """Draw histograms of correct and of hallucinated mentions' scores.

    With their means, the AUC, and below them the reward that each score earns.
    """
    sides = [np.array([row.score for row in rows if row.correct is side]) for side in (True, False)]
    edges = np.histogram_bin_edges(np.concatenate(sides), bins=40)
    by = "" if found.labels == "given" else ", by pseudo-labels"
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(12, 1))
        kinds = (("correct", BLUE, found.correct_mean), ("hallucinated", RED, found.hallucinated_mean))
        for scores, (name, colour, mean) in zip(sides, kinds, strict=True):
            weights = np.full(len(scores), 100 / len(scores))
            label = f"{name}: {len(scores)} mentions, mean {with_minus(f'{mean:.3g}')}"
            axes.hist(scores, edges.tolist(), weights=weights, color=colour, alpha=0.55, label=label)
            axes.axvline(mean, color=colour, linewidth=2, linestyle=(0, (4, 2)))
        axes.set_title("Does the score separate correct from hallucinated?", pad=62)
        axes.set_ylabel("% of its kind")
        below_title = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "alignment": "left"}
        axes.legend(title=f"AUC {found.auc:.3f}{by}", **below_title)
        axes.grid(axis="x", visible=False)
        _draw_rewards(strip, reward, edges[0], edges[-1])
        with replacing(path) as unfinished:
            figure.savefig(unfinished, format="png", dpi=150)


def _draw_rewards(axes: Axes, reward: Callable[[float], float], low: float, high: float) -> None:
    """A strip in the colours of the rewards that scores from `low` to `high` earn."""
    colours = [[int(shade(reward(score))[i : i + 2], 16) for i in (1, 3, 5)] for score in np.linspace(low, high, 400)]
    axes.imshow(np.array([colours], dtype=np.uint8), aspect="auto", extent=(low, high, 0, 1))
    axes.set_xlabel("score of a mention, and the reward it earns: red \N{MINUS SIGN}1, grey 0, blue 1")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
