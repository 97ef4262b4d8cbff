"""A judge's verdict, table and mentions on a run's page and in its report; a page says what the gate stopped."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from judged_images import blind, images, judged, sighted
from made_evaluations import report

from mlx_visalign.evaluation.judge_figures import Dot, dots, judge_figures
from mlx_visalign.reporting.judge_report import JudgeReport, judge_section, read_judge, show_judge
from mlx_visalign.reporting.run_page import ReportPage
from mlx_visalign.reporting.summary import sentences
from mlx_visalign.reporting.svg_plots import POINTS, scatter
from mlx_visalign.runs.image_sources import source_of
from mlx_visalign.runs.recipe import Recipe
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers.trust import trust
from mlx_visalign.utils.console import Terminal
from mlx_visalign.utils.errors import UserError

CONFIG = {
    "method": "csr",
    "model": "my model",
    "images": "tiny-world",
    "max_images": 3,
    "settings": {"judge": {"kind": "clip"}},
}


def found(score=sighted, labels=True, own_scorer=False):
    rows, truth = images(60, score)
    checked = trust(rows, "clip", "consistency", own_scorer)
    truth = truth if labels else {}
    return JudgeReport(judge_figures(rows, checked, truth), dots(rows, checked, truth))


def keep(run, score):
    """What the check of a judge leaves in a run."""
    rows, truth = images(60, score)
    run.judge.write_text(json.dumps(trust(rows, "clip", "consistency").to_row()))
    run.rows("judge").write_text("".join(json.dumps(row.to_row()) + "\n" for row in rows))
    return truth


def shown(figures, capsys):
    Terminal(width=80, highlight=False, markup=False).print(show_judge(figures), crop=False)
    return capsys.readouterr().out


def test_the_table_has_a_column_for_every_part(capsys):
    lines = shown(found().figures, capsys).splitlines()
    assert lines[0].split() == ["CLIP", "consistency", "combined"] and max(map(len, lines)) <= 80
    cells = {re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip())[1:] for line in lines[2:]}
    assert re.fullmatch(r"\d+ \[\d+, \d+\]", cells["above another image, %"][0])
    assert cells["agrees with CLIP"][0] == cells["agrees with CLIP"][2] == "\N{EN DASH}"
    assert cells["AUC"][2] == f"{found().figures.parts[2].auc:.2f}" and len(cells["pairs in order, %"]) == 3


def test_without_labels_nothing_is_said_about_them(capsys):
    one = found(labels=False)
    assert "AUC" not in shown(one.figures, capsys) and len(one.notes) == 1
    assert "By the labels: " in found().notes[1]


def test_a_scorer_of_ones_own_has_its_column(capsys):
    assert "your scorer" in shown(found(own_scorer=True).figures, capsys).splitlines()[0]


def test_a_section_is_whole_and_escaped():
    part = judge_section(found(), "A <judge>", "Before & after.")
    ET.fromstring(part)
    assert "A &lt;judge&gt;" in part and 'class="note"' in part and "Trust this judge" in part and "<svg" in part
    assert "in the image" in part and "not in the image" in part
    stopped = judge_section(found(blind), "The judge")
    assert 'class="warning"' in stopped and "Stop: do not train on this judge" in stopped


def test_nothing_named_has_no_table_and_no_plot():
    checked = trust([judged(0)], "clip", "consistency")
    part = judge_section(JudgeReport(judge_figures([judged(0)], checked, {}), []), "The judge")
    assert "<table" not in part and "<svg" not in part and "names no object" in part


def test_dots_lie_in_the_chart_and_are_not_too_many():
    points = [(i / 999, -1.0 + i / 500) for i in range(1000)]
    chart = ET.fromstring(scatter("a <title>", "x", {"one": ("blue", points), "two": ("red", [(0.5, 7.0)])}))
    circles = chart.findall(".//circle")
    assert 2 < len(circles) <= POINTS + 1
    assert all(44 <= float(one.get("cx")) <= 350 and 44 <= float(one.get("cy")) <= 186 for one in circles)
    assert float(circles[0].get("cy")) > float(circles[-2].get("cy")) > float(circles[-1].get("cy"))
    ET.fromstring(scatter("one point", "x", {"one": ("blue", [(0.0, 3.0)])}))


def test_a_run_is_read_once_it_was_checked(tmp_path):
    run = Run(tmp_path)
    assert read_judge(run, lambda images: {}) is None
    truth = keep(run, sighted)
    one = read_judge(run, lambda images: truth)
    assert one == found() and isinstance(one.dots[0], Dot)
    run.judge.write_text("{")
    with pytest.raises(UserError, match=r"judge\.json"):
        read_judge(run, lambda images: {})


@pytest.fixture
def page(tmp_path):
    run = Run(tmp_path)
    run.start(CONFIG)
    yield ReportPage(run, CONFIG, "CSR: about it.", source_of(Recipe("csr", images="tiny-world", max_images=3)))
    run.close()


def test_a_page_has_the_judge_once_it_was_checked(page):
    assert "judge be trusted" not in page.html()
    keep(page.run, sighted)
    made = page.html()
    assert "<h2>Can its judge be trusted?</h2>" in made and "Trust this judge: CLIP tells" in made
    page.config = CONFIG | {"settings": {}}
    assert "CSR needs no judge. CSR and FiSAO would train on this one." in page.html()


def test_a_page_of_a_run_that_the_gate_stopped(page):
    keep(page.run, blind)
    page.stopped = found(blind).figures.trust.in_words
    made = page.html()
    assert "This run stopped at" in made and made.count("Stop: do not train on this judge") == 2


def test_a_page_is_written_though_the_judges_file_is_damaged(page):
    keep(page.run, sighted)
    page.run.rows("judge").write_text("{\n")
    page.stopped = "The file is damaged."
    assert "The file is damaged." in page.html() and "judge be trusted" not in page.html()


def test_a_report_says_it_in_one_sentence():
    row = found().to_row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    said = [one for one in sentences(report() | {"judge": row}) if "judge" in one]
    assert said == [f"The judge that CSR and FiSAO train on: {row['in_words']} {row['advice']}"]
    assert row["trust"]["verdict"] == "trust" and {part["part"] for part in row["parts"]} == {"clip", "consistency", "combined"}
