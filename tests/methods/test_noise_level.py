"""`diffusion-auto`: the most noise at which answers keep their length, found once and named in every row."""

from dataclasses import replace

import pytest
from stopping import StopError, stop_at

from mlx_visalign import methods
from mlx_visalign.data.questions import make_prompts, spread_descriptions
from mlx_visalign.data.records import Prompt, Response, read_jsonl
from mlx_visalign.inference.policy import load
from mlx_visalign.methods import seva
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.seva import views
from mlx_visalign.methods.seva.views import AUTO, LADDER, Level, choose, level_of
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.source import world_mix, world_photos
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.errors import UserError

TRAIN = PreferenceSettings(batch_size=2, iters=3, learning_rate=1e-3, lora=LoRASettings(rank=4))
SETTINGS = seva.Settings(
    view=AUTO, exists_view="crop", max_length_gap=None, min_yes_margin=None, max_tokens=48, batch=3, train=TRAIN
)


def levels(*ratios, cut=0.0):
    return [Level(label, ratio, cut, 0.5) for label, ratio in zip(LADDER, ratios, strict=False)]


@pytest.mark.parametrize(
    ("ratios", "taken", "words"),
    [
        (
            (1.0, 1.05, 0.92, 1.3, 1.5),
            "diffusion-300",
            "up to diffusion-300 (0.92 times as long, 0% more cut off, 50% changed)",
        ),
        ((1.0, 1.2, 1.0), "diffusion-100", "diffusion-200 (1.20 times as long, 0% more cut off, 50% changed) is too much"),
        ((1.0, 1.0), "diffusion-200", "keep their length up to diffusion-200"),
        ((1.4, 0.8, 1.5), "diffusion-200", "warning: diffusion-auto: at no level"),
    ],
)
def test_the_strongest_before_the_first_that_changes_lengths(ratios, taken, words):
    level, sentence = choose(levels(*ratios))
    assert level.label == taken and words in sentence


def test_a_level_at_which_answers_are_cut_off_does_not_keep_lengths():
    level, sentence = choose([*levels(1.0), *[replace(one, cut=0.2) for one in levels(1.0, 1.0)[1:]]])
    assert level.label == "diffusion-100" and "diffusion-200" in sentence
    cut, longer = replace(levels(1.0)[0], cut=0.5), levels(1.0, 1.3)[1]
    assert choose([cut, longer])[0] == longer  # none keeps it: one that is only longer is nearer


def test_a_level_is_compared_answer_by_answer_with_the_clean_ones():
    def row(id, view, text, tokens, finished=True):
        return Response(id, "a.png", "Q?", "describe", view, text, finished, tokens)

    rows = [row("a", "clean", "A cat.", 10), row("b", "clean", "A dog.", 30, finished=False), row("c", "clean", "A.", 10)]
    rows += [row("a", "x", "A cat.", 10), row("b", "x", "A cow.", 20, finished=False), row("c", "x", "B.", 10, finished=False)]
    level = level_of([*rows, row("a", "y", "No.", 99)], "x")
    assert (level.label, level.ratio) == ("x", 0.8)
    assert (level.cut, level.changed) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_descriptions_are_taken_from_all_over_the_run():
    prompts = [Prompt(str(n), f"{n}.png", "Q?", kind) for kind in ("describe", "exists") for n in range(50)]
    assert [prompt.id for prompt in spread_descriptions(prompts, 20)] == [str(n) for n in range(0, 40, 2)]
    assert spread_descriptions(prompts, 60) == prompts[:50]


def job(folder, on_metrics=None, ask=lambda prompts: prompts):
    prompts = make_prompts(world_photos(folder, "unlabelled", 4, 0), world_mix(1), 5)
    return Job(Run(folder), load("tiny"), ask(prompts), seed=5, on_metrics=on_metrics)


def test_a_run_finds_its_level_once_and_its_rows_name_it(tmp_path, capsys, monkeypatch):
    for limit in ("NEAR", "CUT"):
        monkeypatch.setattr(views, limit, 0.6)  # enough noise for some pairs of four images
    first = job(tmp_path, stop_at(2))
    with pytest.raises(StopError):
        methods.find("seva").train(first, SETTINGS)
    first.run.close()
    [level] = {row.view for row in read_jsonl(first.run.rows("responses"), Response) if row.kind == "describe"} - {"clean"}
    assert level in LADDER and f"{AUTO}: answers keep their length up to {level}" in capsys.readouterr().err
    rows = read_jsonl(first.run.rows("noise_levels"), Response)
    assert len(rows) == 4 * (1 + len(LADDER))
    answers = {row.id: row.text for row in read_jsonl(first.run.rows("responses"), Response) if row.view == level}
    assert {row.id: row.text for row in rows if row.view == level} == answers  # what is found out is what is then done
    assert f'"view": "{level}"' in (tmp_path / "responses.settings.json").read_text()

    second = job(tmp_path)
    methods.find("seva").train(second, SETTINGS)
    methods.find("seva").picture(second, SETTINGS)
    assert (tmp_path / "plots/seva.png").exists()
    assert "choosing the noise" not in capsys.readouterr().err


def test_where_nothing_is_described_a_view_must_be_named(tmp_path):
    asked = job(tmp_path, ask=lambda prompts: [prompt for prompt in prompts if prompt.kind == "exists"])
    with pytest.raises(UserError, match=r"no prompt asks for a description\. Name a view"):
        methods.find("seva").train(asked, SETTINGS)


def test_the_plan_counts_it():
    asked = [Prompt(str(n), f"{n}.png", "Q?", "describe") for n in range(30)]
    fixed, found = (replace(SETTINGS, view=view).workload(asked) for view in ("diffusion-300", AUTO))
    assert found.stages[1:] == fixed.stages and found.trained == fixed.trained
    assert (found.stages[0].total, found.stages[0].sampled) == (20, 20 * 10 * SETTINGS.max_tokens)
    assert replace(SETTINGS, view="crop", exists_view=AUTO).workload(asked).stages[0] == found.stages[0]
