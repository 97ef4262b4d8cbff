"""The report: the figures it holds, the table that shows them, and the sentences that say what they do not show."""

import json
from io import StringIO

import pytest
from made_evaluations import AFTER, BEFORE, PROTOCOL, TRAINING, benchmark, report
from PIL import Image
from rich.console import Console

from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import UNLABELLED, Benchmark
from mlx_visalign.evaluation.runner import Evaluation
from mlx_visalign.reporting.summary import (
    TABLE,
    Shown,
    assess,
    in_short,
    read_report,
    sentences,
    show,
    show_figures,
    summarise,
    write_report,
)
from mlx_visalign.utils.errors import UserError


@pytest.mark.parametrize("spoil", [{"change": {}, "limits": 5}, {"before": {"chair": {"chair_i": 0.1}}}, {"warnings": None}])
def test_a_report_that_cannot_be_shown_is_damaged(tmp_path, spoil):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report()))
    assert read_report(file).keys() == report().keys()
    file.write_text(json.dumps(report() | spoil))
    with pytest.raises(UserError, match=r"report.json is damaged .* Remove it and run the same command again"):
        read_report(file)


def printed(shown, color=False):
    file = StringIO()
    Console(file=file, width=80, force_terminal=color, color_system="standard" if color else None).print(shown)
    return file.getvalue()


def test_every_figure_is_in_the_table():
    made = report()
    for group, figures in made["change"].items():
        assert figures.keys() == TABLE[group][1].keys()


def test_change_is_after_minus_before():
    made = report()
    for group, figures in made["change"].items():
        for name, change in figures.items():
            difference = made["after"][group][name]["value"] - made["before"][group][name]["value"]
            assert change["value"] == pytest.approx(difference)
            assert change["low"] <= change["high"]


def test_the_terminal_sets_controls_beside_the_training():
    made = report()
    assert "preferred by a coin" not in printed(show(made))
    made["controls"] = {"preferred by a coin": {"change": made["change"]}}
    rows = [line.split() for line in printed(show(made)).splitlines()]
    [training, coin] = [row for row in rows if row[:2] in (["the", "training"], ["preferred", "by"])]
    assert len(training) == 2 + 3 and coin[-3:] == training[2:]  # there are no adversarial questions


def test_the_terminal_shows_it_in_80_columns():
    text = printed(show(report()))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    [row] = [line for line in lines if "CHAIR_i (false mentions)" in line]
    assert row.split()[3:6] == ["50.0", "0.0", "-50.0"]
    assert "75 % (chance: 50 %), with a mean margin of 0.40" in " ".join(text.split())


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1)])
def test_assessments(low, high, sign):
    change = {"value": (low + high) / 2, "low": low, "high": high}
    assert [assess(change, better) for better in (sign, -sign, 0)] == ["better", "worse", ""]


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (0.0, 0.2), (-0.1, 0.0)])
def test_an_interval_that_reaches_zero_tells_nothing(low, high):
    change = {"value": (low + high) / 2, "low": low, "high": high}
    assert [assess(change, better) for better in (1, -1, 0)] == ["not clear", "not clear", ""]


def test_what_did_not_move_did_not_change():
    assert assess({"value": 0.0, "low": 0.0, "high": 0.0}, 1) == "no change"


@pytest.mark.parametrize("is_share", [True, False])
def test_what_rounds_to_nothing_has_no_minus(is_share):
    assert Shown("accuracy", 1, is_share).format(-1e-9, sign="+") == ("+0.0" if is_share else "+0.00")


def test_improvements_and_regressions_in_short():
    made = report()
    made["change"]["chair"]["chair_i"] = {"value": -0.5, "low": -0.6, "high": -0.4}
    made["change"]["chair"]["recall"] = {"value": -0.25, "low": -0.6, "high": -0.1}
    minus = "\N{MINUS SIGN}"
    assert in_short(made)["Clearly better"].startswith(f"Descriptions: CHAIR_i (false mentions) {minus}50.0")
    assert f"recall of what is there {minus}25.0" in in_short(made)["Clearly worse"]
    assert all(words.endswith(" percentage points.") for words in in_short(made).values())


def test_better_is_green_and_worse_is_red():
    made = report()
    made["change"]["chair"]["chair_i"] = {"value": -0.5, "low": -0.6, "high": -0.4}
    made["change"]["chair"]["recall"] = {"value": -0.5, "low": -0.6, "high": -0.4}
    lines = printed(show(made), color=True).splitlines()
    assert any("CHAIR_i" in line and "\x1b[32m" in line for line in lines)
    assert any("recall of what" in line and "\x1b[31m" in line for line in lines)


def test_without_labels_it_says_so():
    pictures = benchmark().pictures
    answers = [Response(image, image, PROTOCOL.prompt, "describe", "clean", "A cat.", True, 4) for image in pictures]
    evaluation = Evaluation(Benchmark("photos", pictures), PROTOCOL, answers)
    made = report(evaluation, evaluation, pairs=None)
    assert in_short(made) == {}
    assert UNLABELLED in sentences(made) and not any("chance" in sentence for sentence in sentences(made))
    assert made["change"].keys() == {"length"} and "CHAIR_i" not in printed(show(made))


def test_one_evaluation_is_shown_with_its_intervals():
    text = printed(show_figures("three images", BEFORE.figures))
    [row] = [line.split() for line in text.splitlines() if "CHAIR_i" in line and "F1" not in line]
    value = BEFORE.figures["chair"]["chair_i"]
    assert row[3:] == [f"{100 * value.value:.1f}", f"[{100 * value.low:.1f},", f"{100 * value.high:.1f}]"]


def test_files(tmp_path):
    made = report()
    write_report(made, BEFORE, AFTER, TRAINING, tmp_path / "report.json", tmp_path / "plots")
    assert json.loads((tmp_path / "report.json").read_text()) == made
    for name in ("training.png", "before_after.png"):
        Image.open(tmp_path / "plots" / name).verify()


def test_the_summary_is_of_the_last_updates():
    summary = summarise(TRAINING)
    assert summary["updates"] == 40 and summary["seconds"] == 20
    assert summary["train_loss"] == pytest.approx(1 - 38.5 / 40)  # the mean of the last two of forty
