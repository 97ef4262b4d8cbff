"""A whole run on the tiny model: what it leaves, that it is done once, and that a stopped one goes on."""

import json
import os
import shutil
from pathlib import Path

import pytest
from sample_photos import write_photos
from small_runs import write_recipe

import mlx_visalign
from mlx_visalign import methods
from mlx_visalign.data.records import Prompt, read_jsonl, read_rows
from mlx_visalign.inference.policy import TINY
from mlx_visalign.pipeline.dry_run import upper_bounds
from mlx_visalign.pipeline.prompts_stage import ask
from mlx_visalign.preflight.estimate import SIZES_OF_MACS
from mlx_visalign.reporting.controls_text import BEST, BLIND, NAMES
from mlx_visalign.reporting.summary import show
from mlx_visalign.runs.recipe import find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.utils.errors import UserError

TRAIN = {"iters": 3, "batch_size": 2, "grad_accumulation_steps": 1, "save_every": 1, "lora": {"rank": 4}}
SETTINGS = {"max_tokens": 64, "exists_max_tokens": 4, "train": TRAIN}


@pytest.fixture(scope="module")
def model():
    return "tiny"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("images") / "photos", 20)


@pytest.fixture
def align(model, photos):
    def run(output, **more):
        settings = SETTINGS | more.pop("settings", {})
        return mlx_visalign.align("seva", model=model, images=photos, output=output, settings=settings, **more)

    return run


@pytest.fixture(scope="module")
def finished(model, photos, tmp_path_factory):
    """An undisturbed run: its folder, its report and the rows its callback got."""
    folder, rows = tmp_path_factory.mktemp("runs") / "whole", []
    report = mlx_visalign.align("seva", model=model, images=photos, output=folder, settings=SETTINGS, on_metrics=rows.append)
    return folder, report, rows


def test_a_run_leaves_every_file(finished):
    folder, report, rows = finished
    names = {"prompts.jsonl", "responses.jsonl", "pairs.jsonl", "metrics.jsonl", "config.yaml", "versions.json", "report.html"}
    assert names <= {path.name for path in folder.iterdir()}
    assert {"training.png", "before_after.png", "seva.png", "seva.html"} == {path.name for path in (folder / "plots").iterdir()}
    assert json.loads((folder / "report.json").read_text()) == report
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert report["benchmark"]["name"] == "2 images that were not trained on"
    assert report["benchmark"]["max_tokens"] == 64  # as long as the answers that it learned from


def test_the_page_of_a_finished_run_holds_the_methods_picture_in_words(finished):
    folder, _, _ = finished
    page, fragment = ((folder / name).read_text() for name in ("report.html", "plots/seva.html"))
    assert fragment in page and fragment.count("<figure>") == 6
    assert "not finished" not in page and "SeVa on tiny" in page and "<script" not in page


def test_a_training_that_is_too_short_says_so_above_all_else(finished):
    folder, report, _ = finished
    said = report["too_little"]
    assert said.startswith("This training can hardly have changed the model: 3 updates, 2 of them at a tenth or more")
    page = (folder / "report.html").read_text()
    assert page.index("</h1>") < page.index(said) < page.index("SeVa: ") and said in str(show(report).renderables[0].renderable)


def test_short_trainings_are_announced(photos, model, tmp_path, capsys):
    """In a dry run and before the first answer: even if every prompt made a pair."""
    said = "at most 3 updates, 2 of them at a tenth or more of the learning rate, from at most 54 pairs"
    values = {"images": str(photos), "model": model, **{f"settings.{name}": value for name, value in SETTINGS.items()}}
    assert said in upper_bounds(plan(**values))["too_little"]
    assert "too_little" not in upper_bounds(plan(**values | {"settings.train": TRAIN | {"iters": 100}}))


def test_another_model_is_refused_in_words_before_the_images_are_read(finished, align, photos, tmp_path, capsys):
    shutil.copytree(TINY, tmp_path / "other")
    with (tmp_path / "other/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    with pytest.raises(UserError, match=r"was started with the model tiny, not .*other\. Add --model tiny to resume it"):
        mlx_visalign.align("seva", model=tmp_path / "other", images=photos, output=tmp_path / "run", settings=SETTINGS)
    assert "photos" not in capsys.readouterr().err


def test_a_tenth_of_the_images_is_in_no_pair(finished):
    folder, _, _ = finished
    rows = [row for _, row in read_rows(folder / "prompts.jsonl")]
    kept = {row["image"] for row in rows if row["held_out"]}
    assert len(kept) == 2 and len({row["image"] for row in rows}) == 20
    assert kept.isdisjoint(row["image"] for _, row in read_rows(folder / "responses.jsonl"))


def test_the_trained_model_is_asked_about_held_out_pairs(finished):
    folder, report, _ = finished
    pairs = len(read_rows(folder / "held_out_pairs.jsonl"))
    assert pairs > 0 and report["held_out_pairs"]["pairs"] == pairs
    assert report["held_out_pairs"]["margin"] != 0  # it is the trained model that was asked


def test_a_finished_run_does_nothing_and_says_so(finished, align, capsys, monkeypatch):
    folder, report, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr("mlx_visalign.pipeline.align.load", None)  # not even the model is loaded
    assert align(folder) == report
    assert "nothing is left to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow  # tests/contract/test_kills.py does this with every method
def test_a_stopped_run_goes_on_and_ends_with_the_same_adapter(finished, align, tmp_path, capsys):
    def stop(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(tmp_path / "run", on_metrics=stop)
    told = capsys.readouterr().err
    assert "to resume, run" in told
    assert all(f"\nanswering{images}: " in told for images in ("", ", held-out images"))
    align(tmp_path / "run")
    for name in ("adapter/adapters.safetensors", "after.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished[0] / name).read_bytes()


def test_other_settings_are_refused_and_leave_the_record_of_what_ran(finished, align):
    folder, _, _ = finished
    config = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"max_tokens is 41 now, but .* was written with 64"):
        align(folder, settings={"max_tokens": 41})
    assert (folder / "config.yaml").read_text() == config


def test_another_learning_rate_reuses_the_answers(finished, align, tmp_path, capsys):
    align(tmp_path, reuse=finished[0], settings={"train": TRAIN | {"learning_rate": 1e-3}})
    told = capsys.readouterr().err
    for stage in ("prompts", "before", "responses", "pairs"):
        assert f"{stage}: reused from" in told
        assert (tmp_path / f"{stage}.jsonl").read_bytes() == (finished[0] / f"{stage}.jsonl").read_bytes()


def test_a_clip_must_be_named_before_the_first_answer(photos, tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "other")
    monkeypatch.setattr("mlx_visalign.scorers.clip.fingerprint", str)
    for settings, said in (
        ({}, "Which CLIP model should score"),
        ({"clip": "nowhere"}, "The setting clip: there is no file or folder"),
    ):
        with pytest.raises(UserError, match=said):
            mlx_visalign.align("csr", model=tmp_path / "other", images=photos, output=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()  # nor were the images read


def plan(**values):
    return make_plan(find_recipe("seva"), methods.find, None, {"model": "tiny"} | values)


def test_a_dry_run_without_a_model(photos, monkeypatch):
    monkeypatch.setattr("mlx_visalign.inference.policy.load_model", None)
    told = upper_bounds(plan(images=str(photos)))
    memory = told.pop("memory_gb")
    assert list(memory) == ["weights", "answering", "watching lengths", "before and after", "training", "usable here"]
    assert memory["weights"] < memory["answering"] <= memory[told.pop("peak")] < memory["usable here"]
    assert "training" in told.pop("time_at_most") and told.pop("gflops_here")
    assert [told.pop(f"{size} GB Mac") for size in SIZES_OF_MACS]
    assert told.pop("checkpoints_gb") > 0 and "at most 54 pairs" in told.pop("too_little")
    assert told == {
        "images": 18,
        "images_held_out": 2,
        "prompts": {"describe": 18, "exists": 36},
        "prompts_answered": {"answering": 54},
        "answer_tokens_at_most": 2 * (18 * 256 + 36 * 64),
        "updates_at_most": 7,  # 54 pairs at most, twice, 16 an update
    }


QUICK = ("seva", "fisao")  # one that makes pairs and one that makes rollouts; the others are slow only


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m in QUICK else pytest.mark.slow) for m in methods.names()])
def test_controls_follow_the_alignment(method, tmp_path, capsys):
    makes_pairs = hasattr(methods.find(method).Settings().train, "loss_type")
    names = [*NAMES.values()] if makes_pairs else [BLIND, BEST]
    folder, recipe = tmp_path / "run", str(write_recipe(method, tmp_path))
    rounds = {"rounds": 1} if hasattr(methods.find(method).Settings(), "rounds") else {}
    smallest = {"max_images": 12, "eval_images": 1, "settings": {"train": {"iters": 3}} | rounds}
    made = mlx_visalign.align(recipe, output=folder, controls=True, **smallest)
    assert [*made["controls"]] == names
    assert all(one["change"].keys() == made["change"].keys() for one in made["controls"].values())
    assert f"change, {BLIND}" in (folder / "report.html").read_text()
    adapters = [folder / "adapter", *folder.glob("controls/*/adapter")]
    trained = [(adapter / "adapters.safetensors").read_bytes() for adapter in adapters if adapter.exists()]
    assert len(set(trained)) == len(trained) == len(names)  # one is the method's; the best of eight has none
    assert mlx_visalign.align(recipe, output=folder, **smallest) == made  # not asked for now, they stay
    assert "nothing is left to do" in capsys.readouterr().err


def test_controls_are_told_before_they_are_trained():
    told = upper_bounds(plan(images="tiny-world", max_images=10, controls=True))["controls"]
    assert told.startswith("random, shorter, blind, best: 3 more trainings and 4,000 more answers")


def test_the_tiny_worlds_scenes_are_drawn_in_the_runs_folder_others_for_every_seed(tmp_path):
    images = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        with Run(folder) as run:
            trained, kept = ask(plan(images="tiny-world", max_images=10, seed=seed).recipe, run)
        assert len(trained) == 27 and len(kept) == 3
        assert all((folder / prompt.image).is_file() for prompt in trained + kept)
        images.append({prompt.image for prompt in trained + kept})
    assert images[0].isdisjoint(images[1])


def test_reused_prompts_of_the_tiny_world_have_their_images(tmp_path):
    recipe = plan(images="tiny-world", max_images=10).recipe
    with Run(tmp_path / "one") as run:
        first = ask(recipe, run)
    with Run(tmp_path / "two", reuse=tmp_path / "one") as run:
        assert ask(recipe, run) == first
    assert all((tmp_path / "two" / prompt.image).is_file() for prompt in first[0])


def test_a_users_prompts_are_asked_instead(tmp_path, photos):
    given = [Prompt(f"p{index}", str(photos / f"{index}.png"), "Why?", "describe") for index in range(10)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(prompt.to_row()) + "\n" for prompt in given))
    with Run(tmp_path / "run") as run:
        trained, kept = ask(plan(prompts=str(file), images=str(photos)).recipe, run)
    assert len(kept) == 1 and sorted(prompt.id for prompt in trained + kept) == [prompt.id for prompt in given]
    assert len(read_jsonl(Path(tmp_path / "run" / "prompts.jsonl"), Prompt)) == 10


def test_a_vocabulary_of_the_users_is_asked_about_too(tmp_path, photos):
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps([{"canonical": f"gizmo {index}", "phrases": [f"gizmo {index}"]} for index in range(80)]))
    with Run(tmp_path / "run") as run:
        trained, _ = ask(plan(images=str(photos), vocabulary=str(file)).recipe, run)
    asked = [prompt.prompt for prompt in trained if prompt.kind == "exists"]
    assert 0 < sum("gizmo" in prompt for prompt in asked) < len(asked)


def test_a_run_goes_on_only_with_the_images_it_began_with(tmp_path):
    """Names as a Mac has them are found again; an image that changed or went is named, whichever way the run comes back."""
    folder = write_photos(tmp_path / "photos", 12)
    odd = [folder / name for name in ("Cafe\N{COMBINING ACUTE ACCENT}.png", "two\nlines.png", "it's.png")]
    for number, path in enumerate(odd):
        (folder / f"{number}.png").rename(path)
    recipe = plan(images=str(folder)).recipe
    with Run(tmp_path / "run") as run:
        first = ask(recipe, run)
        assert {prompt.image for side in first for prompt in side} >= {str(path) for path in odd}
        assert ask(recipe, run) == first
        (folder / "7.png").write_bytes((folder / "8.png").read_bytes())
        with pytest.raises(UserError, match=r"1 of the 12 images .* began with .*7\.png, which has changed\. Restore them"):
            ask(recipe, run)
        odd[0].unlink()
        with pytest.raises(UserError, match=r"2 of the 12 images "):
            ask(recipe, run)
    with Run(tmp_path / "other", reuse=tmp_path / "run") as run, pytest.raises(UserError, match=r"2 of the 12 images "):
        ask(recipe, run)


def test_prompts_of_an_earlier_version_say_nothing_of_the_images(tmp_path, photos):
    recipe = plan(images=str(photos)).recipe
    with Run(tmp_path) as run:
        first = ask(recipe, run)
        file = tmp_path / "prompts.jsonl"
        rows = [row for _, row in read_rows(file)]
        file.write_text("".join(json.dumps({name: row[name] for name in row if name != "content"}) + "\n" for row in rows))
        assert ask(recipe, run) == first


def test_a_users_prompts_are_about_the_images_they_were_about(tmp_path, photos):
    image = tmp_path / "mine.png"
    image.write_bytes((photos / "0.png").read_bytes())
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(Prompt("p", "mine.png", "Why?", "describe").to_row()))
    with Run(tmp_path / "run") as run:
        ask(plan(prompts=str(file)).recipe, run)
        image.write_bytes((photos / "1.png").read_bytes())
        with pytest.raises(UserError, match=r"1 of the 1 images .*mine\.png, which has changed"):
            ask(plan(prompts=str(file)).recipe, run)
