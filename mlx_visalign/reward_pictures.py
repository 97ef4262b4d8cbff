"""Pictures of rewards: answers with every word in the colour of its reward, and what the scorer's numbers are worth.

Each comes as a PNG, and all together as a piece of HTML that needs no other file.
"""

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mlx_visalign.calibration import Calibration, Scored
from mlx_visalign.experience import Rewarded
from mlx_visalign.plots import BLUE, RED, STYLE
from mlx_visalign.sheet import PICTURE, Caption, Cell, Span, contact_sheet

GOOD, BAD, NOTHING = (130, 185, 240), (245, 140, 130), (228, 228, 228)  # backgrounds at a reward of 1, -1 and 0
COLUMNS = 3


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer under a heading such as "before", and what was rewarded in it."""

    heading: str
    text: str
    rewarded: tuple[Rewarded, ...]


@dataclass(frozen=True)
class Judged:
    """An image and some answers about it."""

    image: Image.Image
    answers: tuple[JudgedAnswer, ...]


def shade(reward: float) -> str:
    """A background colour: from grey at 0 to blue at 1 and red at -1."""
    share, end = min(1.0, abs(reward)), GOOD if reward > 0 else BAD
    red, green, blue = (round(zero + share * (full - zero)) for zero, full in zip(NOTHING, end, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def coloured(answer: JudgedAnswer) -> tuple[Span, ...]:
    """The answer's text, what was rewarded with its reward behind it and on its colour."""
    spans, at = [], 0
    for part in answer.rewarded:
        spans.append(Span(answer.text[at : part.start]))
        spans.append(Span(answer.text[part.start : part.end], background=shade(part.reward)))
        spans.append(Span(f" {part.reward:+.1f}", "quiet"))
        at = part.end
    return (*spans, Span(answer.text[at:]))


def words_sheet(judged: Sequence[Judged], title: str, legend: str) -> Image.Image:
    """The images with their answers, a colour to every rewarded word."""
    cells = [
        Cell(one.image, tuple(Caption(f"{answer.heading}:", coloured(answer)) for answer in one.answers)) for one in judged
    ]
    scale = [Span(f" {reward:+.1f} ", background=shade(reward)) for reward in (-1, -0.5, 0, 0.5, 1)]
    return contact_sheet(cells, min(COLUMNS, len(cells)), title, [Caption("reward", (*scale, Span(legend)))])


def draw_calibration(rows: Sequence[Scored], found: Calibration, reward: Callable[[float], float], path: Path) -> None:
    """The scores of correct and of hallucinated mentions as two histograms, with their means, the AUC, and below them the
    reward that each score earns.
    """
    sides = [np.array([row.score for row in rows if row.correct is side]) for side in (True, False)]
    edges = np.histogram_bin_edges(np.concatenate(sides), bins=40)
    by = "" if found.labels == "given" else ", by pseudo-labels"
    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.8), layout="constrained")
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(12, 1))
        kinds = (("there", BLUE, found.correct_mean), ("made up", RED, found.hallucinated_mean))
        for scores, (name, colour, mean) in zip(sides, kinds, strict=True):
            weights = np.full(len(scores), 100 / len(scores))
            label = f"{name}: {len(scores)} mentions, mean {mean:.3g}"
            axes.hist(scores, edges.tolist(), weights=weights, color=colour, alpha=0.55, label=label)
            axes.axvline(mean, ymax=0.85, color=colour, linewidth=2, linestyle=(0, (4, 2)))
        axes.set_title(f"Does the score tell what is there? AUC {found.auc:.3f}{by}")
        axes.set_ylabel("% of its kind")
        axes.set_ylim(0, 1.22 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left", ncols=2)
        axes.grid(axis="x", visible=False)
        _draw_rewards(strip, reward, edges[0], edges[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw_rewards(axes: Axes, reward: Callable[[float], float], low: float, high: float) -> None:
    """A strip in the colours of the rewards that scores from `low` to `high` earn."""
    colours = [[int(shade(reward(score))[i : i + 2], 16) for i in (1, 3, 5)] for score in np.linspace(low, high, 400)]
    axes.imshow(np.array([colours], dtype=np.uint8), aspect="auto", extent=(low, high, 0, 1))
    axes.set_xlabel("score of a mention, and the reward it earns: red -1, grey 0, blue 1")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def fragment(title: str, judged: Sequence[Judged], legend: str, notes: Sequence[str], figures: Sequence[Path]) -> str:
    """A piece of HTML with the answers as coloured text, `notes` below the title, and the figures (PNG files) inside."""
    scale = " ".join(_word(f"{reward:+.1f}", reward, "") for reward in (-1, -0.5, 0, 0.5, 1))
    parts = [
        f"<h2>{html.escape(title)}</h2>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        f"<p>reward {scale} {html.escape(legend)}</p>",
        f'<div style="display:flex;flex-wrap:wrap;gap:2em">{"".join(map(_column, judged))}</div>',
        *(
            f'<p><img alt="{file.stem}" style="max-width:min(100%,72em)" src="{_inline(file.read_bytes())}"></p>'
            for file in figures
        ),
    ]
    return '<section style="font-family:sans-serif;line-height:1.6">\n' + "\n".join(parts) + "\n</section>\n"


def _column(one: Judged) -> str:
    buffer = BytesIO()
    one.image.convert("RGB").resize(_shown_size(one.image), Image.Resampling.NEAREST).save(buffer, "PNG")
    answers = "".join(f"<p><b>{html.escape(answer.heading)}</b>: {_words(answer)}</p>" for answer in one.answers)
    return f'<div style="width:20em"><img alt="" style="width:100%" src="{_inline(buffer.getvalue())}">{answers}</div>'


def _shown_size(image: Image.Image) -> tuple[int, int]:
    factor = min(PICTURE[0] / image.width, PICTURE[1] / image.height)
    return round(factor * image.width), round(factor * image.height)


def _words(answer: JudgedAnswer) -> str:
    parts, at = [], 0
    for part in answer.rewarded:
        parts.append(html.escape(answer.text[at : part.start]))
        parts.append(_word(answer.text[part.start : part.end], part.reward, f"score {part.score:.3g}"))
        at = part.end
    return "".join(parts) + html.escape(answer.text[at:])


def _word(text: str, reward: float, note: str) -> str:
    title = f"reward {reward:+.2f}" + (f", {note}" if note else "")
    style = f"background:{shade(reward)};padding:0 .15em;white-space:nowrap"
    return f'<span title="{title}" style="{style}">{html.escape(text)}</span>'


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
