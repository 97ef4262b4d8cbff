"""The report of a run: report.json, terminal table and pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlx_visalign.data.training_log import Row, seconds, warning_signs
from mlx_visalign.evaluation.runner import Evaluation, Figures, changes
from mlx_visalign.reporting.before_after import before_after_sheet
from mlx_visalign.reporting.contact_sheet import save_sheet
from mlx_visalign.reporting.controls_text import in_words
from mlx_visalign.reporting.training_plots import plot_training
from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.files import read_json, write_atomically
from mlx_visalign.utils.formatting import counted

ONE_TRAINING = (
    "The intervals (95 %, bootstrap over the images) are for this one training: another seed would give another model."
)
UNITS = "Shares are in %, their changes in percentage points. A change is clear if its interval excludes 0."
HEADLINES = {
    "false mentions": ("chair", "chair_i"),
    "recall": ("chair", "recall"),
    "F1": ("chair", "f1"),
    "POPE, adversarial": ("pope_adversarial", "accuracy"),
}
"""Metrics of controls shown in the terminal; the page has all."""
LAST = 0.05  # final metrics are the mean over this share of the updates


@dataclass(frozen=True)
class Shown:
    """How a metric is displayed.

    better  1 if more is better, -1 if less is, 0 if neither
    """

    label: str
    better: int
    is_share: bool = True

    def format(self, number: float, sign: str = "") -> str:
        """The number as text, shares in per cent.

        With `sign` "+" positive numbers have a sign too. A negative number that rounds to 0 has no minus.
        """
        return f"{100 * number:{sign}z.1f}" if self.is_share else f"{number:{sign}z.2f}"


POPE = {
    "accuracy": Shown("accuracy", 1),
    "precision": Shown("precision", 1),
    "recall": Shown("recall (true positives)", 1),
    "f1": Shown("F1", 1),
    "yes_rate": Shown("answered yes", 0),
}
TABLE = {
    "chair": (
        "Descriptions",
        {
            "chair_i": Shown("CHAIR_i (false mentions)", -1),
            "chair_s": Shown("CHAIR_s (texts with any)", -1),
            "recall": Shown("recall of what is there", 1),
            "f1": Shown("F1 (1-CHAIR_i, recall)", 1),
            "duplicates": Shown("mentioned again", -1),
            "objects": Shown("mentions per text", 0, is_share=False),
            "words": Shown("words per text", 0, is_share=False),
        },
    ),
    "length": (
        "Length of descriptions",
        {"tokens": Shown("tokens", 0, is_share=False), "cut_off": Shown("cut off at the limit", -1)},
    ),
    "pope_random": ("POPE, random", POPE),
    "pope_popular": ("POPE, popular", POPE),
    "pope_adversarial": ("POPE, adversarial", POPE),
    "capability": (
        "Capability: kinds of questions not trained on",
        {
            "accuracy": Shown("correct answers", 1),
            "colour": Shown("what colour something is", 1),
            "count": Shown("how many objects", 1),
            "count_colour": Shown("how many of a colour", 1),
        },
    ),
}


def make_report(
    before: Evaluation,
    after: Evaluation,
    *,
    training: Sequence[Row],
    held_out_pairs: Mapping[str, float] | None,
    versions: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of report.json.

    Metrics are {"value", "low", "high"}, with their 95 % interval.

    training        the rows of metrics.jsonl, one per update
    held_out_pairs  `dpo.reward_accuracy` on pairs that were not trained on, or None if there are none
    """
    return {
        "benchmark": {"name": before.benchmark.name, "images": len(before.benchmark.pictures), **asdict(before.protocol)},
        "before": as_rows(before.figures),
        "after": as_rows(after.figures),
        "change": as_rows(changes(before, after)),
        "held_out_pairs": None if held_out_pairs is None else dict(held_out_pairs),
        "training": summarise(training),
        "warnings": [*warning_signs(list(training)).values()],
        "limits": [before.benchmark.limits, ONE_TRAINING],
        "versions": dict(versions),
        "settings": dict(settings),
    }


def write_report(
    report: Mapping[str, Any], before: Evaluation, after: Evaluation, training: Sequence[Row], file: Path, plots: Path
) -> None:
    """Write report.json, training.png and before_after.png.

    The report goes to `file`, the pictures to the folder `plots`.
    """
    plot_training(training, plots / "training.png")
    save_sheet(before_after_sheet(before, after), plots / "before_after.png")
    write_atomically(file, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))


def summarise(training: Sequence[Row]) -> dict[str, float]:
    """Updates, seconds and final metrics of a training.

    Final metrics are means over the last 5 % of the updates.
    """
    last = training[-math.ceil(LAST * len(training)) :]
    means = {name: fmean(row[name] for row in last) for name in last[0] if name != "iteration"}
    return {"updates": len(training), "seconds": seconds(training), **means}


def show(report: Mapping[str, Any]) -> Group:
    """The report for the terminal: tables, then sentences."""
    table = number_table(report["benchmark"]["name"], "before", "after", "change, 95 % interval")
    table.add_column("")
    for group, (title, figures) in TABLE.items():
        if group in report["change"]:
            table.add_row(Text(title, style="bold"))
            for name, shown in figures.items():
                table.add_row(*_cells(shown, *(report[side][group][name] for side in ("before", "after", "change"))))
    controls = [Padding(_controlsnumber_table(report), (1, 0, 0, 0))] if "controls" in report else []
    too_little = [Padding(Text(report["too_little"], style="bold"), (0, 0, 1, 0))] if report.get("too_little") else []
    return Group(*too_little, table, *controls, *(Padding(Text(sentence), (1, 0, 0, 0)) for sentence in sentences(report)))


def read_report(file: Path) -> dict[str, Any]:
    """Read a run's report.

    Raises `UserError` if it cannot be displayed.
    """
    report = read_json(file)
    try:
        show(report)
    except Exception as error:  # the file is untrusted, and anything may be missing
        raise UserError(
            f"{file} is damaged (displaying it failed: {plainly(error)}). Remove it and run the same command again: finished "
            "stages are kept, and the report is written again."
        ) from error
    return report


def _controlsnumber_table(report: Mapping[str, Any]) -> Table:
    """The changes by training and by each control."""
    columns = {label: (group, name) for label, (group, name) in HEADLINES.items() if group in report["change"]}
    table = number_table("Changes compared with controls", *columns)
    for title, made in {"the training": report, **report["controls"]}.items():
        cells = (TABLE[group][1][name].format(made["change"][group][name]["value"], "+") for group, name in columns.values())
        table.add_row(title, *cells)
    return table


def show_figures(name: str, figures: Figures) -> Table:
    """One evaluation's metrics for the terminal."""
    table = number_table(name, "value", "95 % interval")
    for group, (title, shown) in TABLE.items():
        if group in figures:
            table.add_row(Text(title, style="bold"))
            for figure, how in shown.items():
                value, low, high = (how.format(number) for number in asdict(figures[group][figure]).values())
                table.add_row(f"  {how.label}", value, Text(f"[{low}, {high}]"))
    return table


def number_table(title: str, *columns: str) -> Table:
    """A table for the terminal: labels, then `columns` of numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Sentences below the tables: outcome, notes, limits, warnings."""
    outcome = (f"{side}: {text}" for side, text in in_short(report).items())
    return [*outcome, *notes(report), *report["limits"], *(f"Warning: {sign}" for sign in report["warnings"])]


def notes(report: Mapping[str, Any]) -> list[str]:
    """How to read the table, held-out pairs and controls."""
    said = [UNITS]
    pairs = report["held_out_pairs"]
    if pairs is not None:
        said.append(
            f"On {counted(round(pairs['pairs']), 'pair')} not trained on, the chosen answer has the higher reward in "
            f"{100 * pairs['accuracy']:.0f} % (chance: 50 %), with a mean margin of {pairs['margin']:z.2f}. "
            "A value well above chance means that the preferences were learned, not that they are right."
        )
    if "judge" in report:
        said.append(f"The judge that CSR and FiSAO train on: {report['judge']['in_words']} {report['judge']['advice']}")
    return [*said, *in_words(report)]


def in_short(report: Mapping[str, Any]) -> dict[str, str]:
    """Improvements and regressions; empty without ground truth."""
    if report["change"].keys() <= {"length"}:
        return {}
    those = {side: _those(report["change"], side) for side in ("better", "worse")}
    return {f"Clearly {side}": f"{text} percentage points." if text else "nothing." for side, text in those.items()}


def _those(change: Mapping[str, Mapping[str, Row]], wanted: str) -> str:
    """The metrics with this assessment, and their changes."""
    groups = []
    for group, (title, figures) in TABLE.items():
        named = [
            f"{shown.label} {shown.format(change[group][name]['value'], '+')}"
            for name, shown in figures.items()
            if group in change and assess(change[group][name], shown.better) == wanted
        ]
        groups += [f"{title}: {', '.join(named)}"] if named else []
    return "; ".join(groups).replace(" -", " \N{MINUS SIGN}")


def _cells(shown: Shown, before: Row, after: Row, change: Row) -> list[Text | str]:
    difference, low, high = (shown.format(change[side], sign="+") for side in ("value", "low", "high"))
    assessment = assess(change, shown.better)
    style = {"better": "green", "worse": "red"}.get(assessment, "")
    return [
        f"  {shown.label}",
        *(shown.format(side["value"]) for side in (before, after)),
        Text(f"{difference} [{low}, {high}]", style=style),
        Text(assessment, style=style),
    ]


def assess(change: Row, better: int) -> str:
    """Whether a change is clear, and better or worse.

    A change is clear if its interval excludes 0.
    """
    if not better:
        return ""
    if change["low"] == change["high"] == 0:
        return "no change"
    if change["low"] <= 0 <= change["high"]:
        return "not clear"
    return "better" if (change["low"] > 0) == (better > 0) else "worse"


def as_rows(figures: Figures) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics as JSON values."""
    return {group: {name: asdict(figure) for name, figure in named.items()} for group, named in figures.items()}
