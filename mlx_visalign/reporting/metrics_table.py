"""A report's metrics on a web page: tiles and tables."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mlx_visalign.data.training_log import Row
from mlx_visalign.evaluation.runner import Figures
from mlx_visalign.reporting.html import Html, join, path, table, tag
from mlx_visalign.reporting.summary import TABLE, Shown, assess
from mlx_visalign.utils.formatting import counted, with_minus

LARGE = {
    ("chair", "chair_i"): "named objects that are not in the image (CHAIR_i)",
    ("chair", "recall"): "objects in the image that are named (recall)",
    ("chair", "f1"): "both combined (F1)",
    ("pope_adversarial", "accuracy"): "correct answers to misleading yes/no questions (POPE, adversarial)",
}
LARGE_UNLABELLED = {
    ("length", "tokens"): "length of a description, in tokens",
    ("length", "cut_off"): "descriptions cut off at the limit",
}
MEANINGS = {
    "chair": {
        "CHAIR_i": "The share of named objects that are not in the image.",
        "CHAIR_s": "The share of descriptions with at least one such object.",
        "recall": "The share of objects in the images that are named. Short descriptions make fewer errors, so look at both.",
        "F1": "Both combined: the harmonic mean of 1 - CHAIR_i and recall.",
        "mentioned again": "The share of mentions of an object that the same text has already named.",
    },
    "pope_random": {
        "POPE": "Yes/no questions, \u201cis there a ...?\u201d, half of them about objects in the image. The others are about "
        "absent objects: random ones, popular ones, or adversarial ones, which usually occur together with what is there.",
        "answered yes": "Half of the correct answers are yes. Saying no more often raises precision and lowers recall.",
    },
    "length": {
        "[low, high]": "The 95 % interval: on other images of this kind the change would most likely be in this range too.",
    },
}
BAR = 100  # half the width of an interval's drawing, in SVG units


def tiles(report: Mapping[str, Any]) -> Html:
    """The main metrics as tiles: before, after, change."""
    made = [_tile(report, group, name, label) for (group, name), label in _wanted(report).items()]
    pairs = report["held_out_pairs"]
    if pairs is not None:
        value, among = f"{100 * pairs['accuracy']:.0f} %", f"of {counted(round(pairs['pairs']), 'pair')}; chance: 50\u00a0%"
        made.append(_large("held-out pairs whose chosen answer it prefers", value, among, ""))
    return tag("div", *made, cls="tiles")


def _wanted(report: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    wanted = LARGE if "chair" in report["change"] else LARGE_UNLABELLED
    return {(group, name): label for (group, name), label in wanted.items() if group in report["change"]}


def _tile(report: Mapping[str, Any], group: str, name: str, label: str) -> Html:
    shown, (before, after, change) = (
        TABLE[group][1][name],
        (report[side][group][name] for side in ("before", "after", "change")),
    )
    value = f"{shown.format(before['value'])} → {shown.format(after['value'])}" + " %" * shown.is_share
    return _large(label, value, join(*_with_interval(shown, change)), assess(change, shown.better))


def _large(label: str, value: str, below: str, assessment: str) -> Html:
    return tag(
        "div",
        tag("p", label, cls="label"),
        tag("p", value, cls="value"),
        tag("p", below, cls=f"change {_class(assessment)}"),
        tag("p", assessment, cls=f"change {_class(assessment)}"),
        cls="tile",
    )


def figures_table(report: Mapping[str, Any], names: Sequence[str] = ("before", "after")) -> Html:
    """All metrics before and after, with changes.

    Changes have their interval, also as a drawing, followed by the change in each control.
    """
    controls = report.get("controls", {})
    widest = max(_reach(report["change"][group][name]) for group, name in _shares(report["change"]))
    scale = tag("span", f"\N{PLUS-MINUS SIGN}{100 * widest:.1f} points", cls="bar") if widest else ""
    head = ["", *map(path, names), "change, 95 % interval", "", scale, *(f"change, {name}" for name in controls)]
    return table(head, _rows(report, [control["change"] for control in controls.values()], len(head), widest))


def _shares(figures: Container[str]) -> list[tuple[str, str]]:
    """The metrics that are shares and can be drawn on one scale."""
    shown = ((group, name, how) for group, (_, named) in TABLE.items() if group in figures for name, how in named.items())
    return [(group, name) for group, name, how in shown if how.is_share]


def _rows(report: Mapping[str, Any], controls: Sequence[Mapping[str, Any]], columns: int, widest: float) -> Iterator[Html]:
    """`widest`: the change at the end of an interval's drawing."""
    for group, (title, figures) in TABLE.items():
        if group not in report["change"]:
            continue
        yield group_row(title, columns)
        for name, shown in figures.items():
            before, after, change = (report[side][group][name] for side in ("before", "after", "change"))
            assessment = assess(change, shown.better)
            yield tag(
                "tr",
                tag("th", shown.label, scope="row"),
                tag("td", shown.format(before["value"])),
                tag("td", shown.format(after["value"])),
                tag("td", *_with_interval(shown, change), cls=_class(assessment)),
                tag("td", assessment, cls=f"assessment {_class(assessment)}"),
                tag("td", _bar(change, widest) if shown.is_share else "", cls=f"bar {_class(assessment)}"),
                *(tag("td", *_with_interval(shown, control[group][name]), cls="control") for control in controls),
            )


def meanings(groups: Container[str]) -> Html:
    """Definitions of these groups' metrics, collapsed at first."""
    said = ((name, text) for group, names in MEANINGS.items() if group in groups for name, text in names.items())
    return tag(
        "details",
        tag("summary", "What these figures mean"),
        tag("dl", *(part for name, text in said for part in (tag("dt", name), tag("dd", text)))),
        cls="meanings",
    )


def one_evaluation(figures: Figures) -> Html:
    """A table of all metrics with intervals."""
    rows = []
    for group, (title, shown) in TABLE.items():
        if group in figures:
            rows.append(group_row(title, 3))
            for name, how in shown.items():
                value, low, high = (how.format(number) for number in asdict(figures[group][name]).values())
                rows.append(tag("tr", tag("th", how.label, scope="row"), tag("td", value), tag("td", f"[{low}, {high}]")))
    return table(["", "value", "95 % interval"], rows)


def rounds_table(report: Mapping[str, Any]) -> Html:
    """Main metrics, cost and output of each round.

    The metrics are shown before the first round and after each.
    """
    rounds = report["rounds"]
    head = ["", "before", *(f"after round {one['round']}" for one in rounds)]
    rows = [group_row("Figures", len(head))]
    for (group, name), label in _wanted(report).items():
        shown, sides = TABLE[group][1][name], (report["before"], *(one["figures"] for one in rounds))
        rows.append(_line(label, [shown.format(side[group][name]["value"]) for side in sides]))
    rows.append(group_row("Cost and output of the round", len(head)))
    flat = [dict(_flat(one)) for one in rounds]
    return table(head, rows + [_line(name.replace("_", " "), ["", *(one[name] for one in flat)]) for name in flat[0]])


def _flat(one_round: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A round's numbers; those in groups are named GROUP: NAME."""
    for name, value in one_round.items():
        if isinstance(value, Mapping) and name != "figures":
            yield from ((f"{name}: {side}", _number(number)) for side, number in value.items())
        elif name not in ("round", "figures"):
            yield name, _number(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else with_minus(f"{value:.2f}")


def _line(label: str, values: Iterable[str]) -> Html:
    return tag("tr", tag("th", label, scope="row"), *(tag("td", value) for value in values))


def group_row(title: str, columns: int) -> Html:
    """A group's title, which stays visible when the table scrolls."""
    return tag("tr", tag("th", tag("span", title), colspan=str(columns), scope="colgroup"), cls="group")


def _with_interval(shown: Shown, change: Row) -> tuple[str, ...]:
    """The change with its interval, unless there is no change. A narrow page shows the interval below it."""
    value, low, high = (with_minus(shown.format(change[side], sign="+")) for side in ("value", "low", "high"))
    if change["low"] == change["high"] == 0:
        return (shown.format(0.0),)
    return value, " ", tag("span", f"[{low}, {high}]", cls="interval")


def _reach(change: Row) -> float:
    return max(abs(change["low"]), abs(change["high"]))


def _bar(change: Row, widest: float) -> Html:
    """The interval as a line with a dot, and a vertical line at no change."""
    low, value, high = (BAR * change[side] / (widest or 1) for side in ("low", "value", "high"))
    lines = join(
        tag("line", x1="0", x2="0", y1="-12", y2="12", cls="zero"),
        tag("line", x1=f"{low:.1f}", x2=f"{high:.1f}", y1="0", y2="0", stroke_width="2.5"),
        tag("circle", cx=f"{value:.1f}", cy="0", r="4", stroke="none"),
    )
    return tag("svg", lines, viewBox=f"{-BAR - 6} -12 {2 * BAR + 12} 24", aria_hidden="true")


def _class(assessment: str) -> str:
    return assessment if assessment in ("better", "worse") else ""
