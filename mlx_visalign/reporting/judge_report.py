"""A judge's figures for the terminal and the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from mlx_visalign.data.records import read_jsonl
from mlx_visalign.evaluation.judge_figures import Dot, JudgeFigures, PartFigures, dots, judge_figures
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.reporting.html import Html, paragraphs, section, table, tag
from mlx_visalign.reporting.summary import number_table
from mlx_visalign.reporting.svg_plots import scatter
from mlx_visalign.runs.run_folder import RunFolder
from mlx_visalign.scorers.trust import JudgedImage, Trust
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.formatting import counted, with_minus
from mlx_visalign.utils.provenance import as_json

COLUMNS = {"clip": "CLIP", "consistency": "consistency", "self_check": "yes or no", "combined": "combined"}
NOTES = (
    "Every row is about the objects that the model names, at their first mention. Above: how many of them score higher about "
    "their own image than about another image, or a blank one (chance: 50 %). Agrees: rank correlation, the position in the "
    "answer held constant; 0 is none. Position: rank correlation with the place in the answer; near \N{MINUS SIGN}1 or 1 a "
    "judge knows nothing else."
)
LABEL_NOTES = (
    "AUC: how often a mention of an object that is there outscores one of an object that is not, over all images (chance: "
    "0.50). Pairs in order: the same for two mentions in the answer about one image."
)


@dataclass(frozen=True)
class JudgeReport:
    """A judge's figures, and the mentions behind its verdict."""

    figures: JudgeFigures
    dots: Sequence[Dot]

    def to_row(self) -> dict[str, Any]:
        """The figures as JSON values, with the verdict in words."""
        trust = self.figures.trust
        return as_json({"in_words": trust.in_words, "advice": trust.advice, **self.figures.to_row()})

    @property
    def notes(self) -> list[str]:
        """How to read the table."""
        counts = self.figures.labels
        if counts is None:
            return [NOTES]
        made = f"{counted(counts.true, 'true mention')}, {counts.false:,} false, {counted(counts.pairs, 'pair')}."
        return [NOTES, f"{LABEL_NOTES} By the labels: {made}"]


def read_judge(run: RunFolder, labels: Callable[[Sequence[str]], Annotations]) -> JudgeReport | None:
    """A run's judge; None before it was checked.

    `labels` gives the objects in those of some images that have labels. Raises `UserError` for a damaged file.
    """
    if not (run.judge.exists() and run.rows("judge").exists()):
        return None
    trust = Trust.from_row(read_json(run.judge), str(run.judge))
    rows = read_jsonl(run.rows("judge"), JudgedImage)
    truth = labels([row.image for row in rows])
    return JudgeReport(judge_figures(rows, trust, truth), dots(rows, trust, truth))


def show_judge(figures: JudgeFigures) -> Table:
    """The table of a judge's parts for the terminal."""
    made = number_table("", *_heads(figures))
    for label, cells in _rows(figures):
        made.add_row(label, *map(Text, cells))
    return made


def judge_section(found: JudgeReport, title: str, *lead: str) -> Html:
    """A page's section on the judge: verdict, table, mentions."""
    trust = found.figures.trust
    rows = (
        tag("tr", tag("th", label, scope="row"), *(tag("td", cell) for cell in cells)) for label, cells in _rows(found.figures)
    )
    verdict = tag("p", f"{trust.in_short} {trust.advice}", cls="note" if trust.verdict == "trust" else "warning")
    return section(
        title,
        paragraphs(lead),
        verdict,
        *([table(["", *_heads(found.figures)], rows), paragraphs(found.notes, "soft")] if found.figures.parts else []),
        *([_plot(found)] if found.dots else []),
    )


def _heads(figures: JudgeFigures) -> list[str]:
    return [_column(part.part, figures.trust) for part in figures.parts]


def _column(part: str, trust: Trust) -> str:
    return "your scorer" if part == "clip" and trust.own_scorer else COLUMNS[part]


def _rows(figures: JudgeFigures) -> list[tuple[str, list[str]]]:
    """Labels and cells of the table, a column for each part."""
    parts = figures.parts

    def row(label: str, cell: Callable[[PartFigures], str]) -> tuple[str, list[str]]:
        return label, [with_minus(cell(part)) for part in parts]

    others = list(dict.fromkeys(name for part in parts for name in part.agreement))
    made = [
        row("above another image, %", _seen),
        row("above a blank image, %", lambda part: f"{100 * part.sees_blank:.0f}"),
        *(
            row(f"agrees with {_column(name, figures.trust)}", lambda part, name=name: _optional(part.agreement.get(name)))  # type: ignore[misc]
            for name in others
        ),
        row("position", lambda part: _optional(part.position)),
    ]
    if figures.trust.weights:
        made.append(row("weight in combined", lambda part: _optional(part.weight)))
    if figures.labels is not None:
        made += [
            row("AUC", lambda part: _optional(part.auc)),
            row("pairs in order, %", lambda part: _optional(part.pair_accuracy, share=True)),
        ]
    return made


def _seen(part: PartFigures) -> str:
    value, low, high = (f"{100 * number:.0f}" for number in (part.sees.value, part.sees.low, part.sees.high))
    return f"{value} [{low}, {high}]"


def _optional(number: float | None, share: bool = False) -> str:
    """A number, or a dash where it has no meaning."""
    if number is None:
        return "\N{EN DASH}"
    return f"{100 * number:.0f}" if share else f"{number:z.2f}"


def _plot(found: JudgeReport) -> Html:
    trust = found.figures.trust
    kinds = {True: ("in the image", "blue"), False: ("not in the image", "red"), None: ("named", "blue")}
    groups = {
        name: (colour, [(dot.place, dot.score) for dot in found.dots if dot.correct is kind])
        for kind, (name, colour) in kinds.items()
    }
    return scatter(
        f"Mentions' scores by {trust.name(trust.judge)}, standardised",
        "place in the answer, from 0 (beginning) to 1 (end)",
        {name: group for name, group in groups.items() if group[1]},
    )
