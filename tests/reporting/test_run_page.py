"""report.html: what is there at each moment of a run, figures and marks, and nothing that a text can break."""

import json
import re

import pytest
from made_evaluations import PROTOCOL, benchmark, said
from PIL import Image

from mlx_visalign import methods
from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import UNLABELLED, Benchmark
from mlx_visalign.evaluation.runner import Evaluation
from mlx_visalign.methods import seva
from mlx_visalign.pipeline import align as pipeline
from mlx_visalign.reporting import run_page as report_page
from mlx_visalign.reporting.html import tag
from mlx_visalign.reporting.run_page import ReportPage
from mlx_visalign.reporting.summary import make_report
from mlx_visalign.runs.image_sources import source_of
from mlx_visalign.runs.recipe import Plan, Recipe
from mlx_visalign.runs.run import Run
from mlx_visalign.utils.errors import UserError

ANSWERS = {"a": "Yes.", "b": "No."}
BEFORE = said({"a": "A cat and a dog.", "b": "A cat.", "c": "A cup."}, ANSWERS)
AFTER = said({"a": "A cat.", "b": "A cat and a cup.", "c": "Nothing."}, ANSWERS)
CONFIG = {
    "method": "seva",
    "model": "my <model>",
    "images": "tiny-world",
    "prompts": None,
    "max_images": 3,
    "settings": {"train": {"beta": 0.1}},
}
TRAINING = [{"iteration": i, "train_loss": 1 / i, "accuracy": 0.5, "iterations_per_second": 2.0} for i in range(1, 5)]
HOSTILE = "</section><script>alert(1)</script>"


def report(before, after, pairs=None):
    return make_report(before, after, training=TRAINING, held_out_pairs=pairs, versions={}, settings={})


def unlabelled(text):
    pictures = benchmark().pictures
    answers = [Response(image, image, PROTOCOL.prompt, "describe", "clean", text, True, 4) for image in pictures]
    return Evaluation(Benchmark("photos", pictures), PROTOCOL, answers)


@pytest.fixture
def page(tmp_path):
    run = Run(tmp_path)
    run.start(CONFIG)
    yield ReportPage(run, CONFIG, "SeVa: about it.", source_of(Recipe("seva", images="tiny-world", max_images=3)))
    run.close()


def finish(page, before=BEFORE, after=AFTER):
    page.before, page.after, page.report = before, after, report(before, after, {"pairs": 5, "accuracy": 0.8, "margin": 0.1})
    page.run.metrics.write_text("".join(json.dumps(row) + "\n" for row in TRAINING))
    return page.html()


def test_it_shows_what_is_there_so_far(page):
    first = page.html()
    assert "SeVa on my &lt;model&gt;" in first and "not finished" in first and 'http-equiv="refresh"' in first
    assert "settings.train.beta" in first and "mlx-vlm" in first and "<svg" not in first
    page.before = BEFORE
    page.run.stage("prompts", [1, 2], lambda some: [{"row": item} for item in some], settings={}, batch=2, title="t")
    page.run.metrics.write_text(json.dumps(TRAINING[0]) + "\n")
    under_way = page.html()
    assert "Before training: three images" in under_way and "<dt>prompts</dt><dd>2</dd>" in under_way
    assert "<svg" in under_way and "<h2>Descriptions" not in under_way and "Shares are in %." in under_way
    assert "prompts, 1 update of the training. The page reloads itself" in under_way


def test_a_finished_run(page):
    made = finish(page)
    assert "not finished" not in made and 'http-equiv="refresh"' not in made
    assert "50.0 → 33.3" in made and "80 %" in made  # false mentions; held-out pairs
    assert '<mark class="wrong">dog</mark>' in made and '<mark class="missed">dog</mark>' in made
    assert "3 of 3 descriptions differ. Hallucinated objects: after has fewer than before in 2 of them" in made
    assert "more in 1, equally many in 0" in made  # losses too
    assert "visalign compare 'my &lt;model&gt;'" in re.sub("</?code>", "", made).replace("&#x27;", "'")
    assert "another seed would give another model" in made
    assert "<b>Clearly better: </b>nothing." in made and "<b>Clearly worse: </b>nothing." in made  # of three images
    assert "<summary>What these figures mean</summary>" in made and "<dt>POPE</dt>" in made


def test_labels_that_were_used_are_told(page):
    assert "3 scenes of the tiny world, without labels." in finish(page)
    page.config = CONFIG | {"settings": {"labels": "truth.json"}}
    assert "with labels of their objects (settings.labels: truth.json)." in page.html()


def test_a_run_that_stopped_says_why(tmp_path, monkeypatch):
    def stop(*_):
        raise UserError("The images are <gone>.")

    monkeypatch.setattr(pipeline, "_carry_out", stop)
    recipe = Recipe("seva", images="tiny-world", max_images=3)
    with pytest.raises(UserError):
        pipeline.run_recipe(Plan(recipe, methods.find("seva"), seva.Settings()), Run(tmp_path))
    made = (tmp_path / "report.html").read_text()
    assert "This run stopped at" in made and "The images are &lt;gone&gt;." in made and 'http-equiv="refresh"' not in made


def test_without_labels_it_says_that_there_is_no_chair(page):
    made = finish(page, unlabelled("A cat."), unlabelled("A dog."))
    assert f'<p class="note">{UNLABELLED}</p>' in made and "CHAIR_i" not in made
    assert '<mark class="changed">cat</mark>' in made and 'class="wrong"' not in made


def test_a_hostile_answer_is_only_text(page):
    made = finish(page, unlabelled(HOSTILE), unlabelled(f"{HOSTILE} A dog."))
    assert "<script" not in made and made.count("&lt;script&gt;") == 6


def test_a_methods_fragment_goes_before_its_picture(page):
    page.run.plots.mkdir()
    Image.new("RGB", (5, 5)).save(page.run.plots / "seva.png")
    assert "How SeVa works" in page.html() and 'class="drawn"' in page.html()
    (page.run.plots / "seva.html").write_text(tag("p", "drawn in words"))
    assert "<p>drawn in words</p>" in page.html() and 'class="drawn"' not in page.html()


def test_intervals_are_drawn_on_one_scale_and_what_did_not_change_has_none(page):
    finish(page)
    for group in page.report["change"].values():
        group.update({name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in group})
    assert "points</span></th>" not in page.html() and "[+0.0" not in page.html()
    page.report["change"]["chair"]["chair_i"] = {"value": -0.1, "low": -0.25, "high": 0.0}
    page.report["change"]["pope_popular"]["f1"] = {"value": 0.05, "low": 0.0, "high": 0.1}
    made = page.html()
    assert '<th scope="col"><span class="bar">\N{PLUS-MINUS SIGN}25.0 points</span></th>' in made
    assert '<line x1="-100.0" x2="0.0"' in made and '<line x1="0.0" x2="40.0"' in made


def test_controls_stand_beside_the_change(page):
    finish(page)
    assert "change, blind" not in page.html()
    page.report["controls"] = {"blind": {"change": page.report["change"]}}
    assert "change, blind" in page.html()


def test_rounds_are_told_one_by_one(page):
    assert "Round by round" not in finish(page)
    page.report["rounds"] = [
        {"round": number, "pairs": 1000 * number, "reward": {"chosen": 0.5, "rejected": -0.5}, "figures": page.report["after"]}
        for number in (1, 2)
    ]
    made = page.html()
    assert '<th scope="col">after round 2</th>' in made and "<td>1,000</td><td>2,000</td>" in made
    assert '<th scope="row">reward: rejected</th><td></td><td>\N{MINUS SIGN}0.50</td>' in made
    assert "(CHAIR_i)</th><td>50.0</td><td>33.3</td><td>33.3</td></tr>" in made


def test_it_is_written_anew_only_now_and_then(page, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(report_page.time, "monotonic", lambda: now[0])
    file = page.run.folder / "report.html"
    page.refresh()
    file.unlink()
    page.refresh()
    assert not file.exists()
    now[0] += report_page.SECONDS
    page.refresh()
    assert file.exists()
