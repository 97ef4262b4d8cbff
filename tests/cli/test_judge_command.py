"""`visalign judge`: sentence first, table, labels, resume; a run that its gate stops; the demo's line about its CLIP."""

import json

import pytest
from sample_photos import write_photos
from small_runs import SETTINGS, WORLD

from mlx_visalign.cli import demo, judge
from mlx_visalign.cli.main import main
from mlx_visalign.methods import judge as module
from mlx_visalign.methods.judge import PARTS

FEW = ["--images", "tiny-world", "--max-images", "8", "--max-tokens", "40"]


@pytest.fixture
def visalign(capsys, monkeypatch, tmp_path):
    """Run a command in a folder of its own; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_its_kinds_are_those_of_the_settings():
    assert list(PARTS) == list(judge.KINDS)


def test_the_built_in_world_with_its_labels(visalign, tmp_path, monkeypatch):
    """As text, as JSON, and again from what is kept, without asking the model."""
    code, out, err = visalign("judge", *FEW)
    assert code == 0, err
    assert out.split(":")[0] in ("Trust this judge", "Doubt this judge", "Stop") and "AUC" in out and "pairs in order" in out
    assert "Saved in runs/judge" in out and max(map(len, out.splitlines())) <= 80
    kept = {file.name: file.read_bytes() for file in (tmp_path / "runs/judge").glob("*.json*")}
    monkeypatch.setattr(module._Parts, "sample", None)
    code, again, _ = visalign("judge", *FEW, "--json")
    found = json.loads(again)
    assert code == 0 and found["trust"]["images"] == 8 and found["figures"] == "runs/judge/judge.json"
    assert [part["part"] for part in found["parts"]] == ["clip", "consistency", "self_check", "combined"]
    assert found["labels"]["true"] + found["labels"]["false"] == found["trust"]["mentions"] > 0
    assert kept == {file.name: file.read_bytes() for file in (tmp_path / "runs/judge").glob("*.json*")}


def test_photos_with_labels_and_a_scorer_of_ones_own(visalign, tmp_path):
    """A stop is said, and nothing is stopped."""
    write_photos(tmp_path / "photos", 4)
    (tmp_path / "mine.py").write_text("def alike(images, texts):\n    return [1.0] * len(texts)\n")
    words = [{"canonical": name, "phrases": [name]} for name in ("circle", "square", "star", "triangle", "heart", "ring")]
    (tmp_path / "words.json").write_text(json.dumps(words))
    (tmp_path / "truth.json").write_text('{"photos/0.png": ["circle", "star"], "1.png": []}')
    photos = ["judge", "--model", "tiny", "--images", "photos", "--vocabulary", "words.json", "--max-tokens", "30"]
    code, out, err = visalign(*photos, "--scorer", "mine.py:alike", "--annotations", "truth.json", "--json")
    found = json.loads(out)
    assert code == 0 and found["trust"]["verdict"] == "stop" and found["trust"]["own_scorer"], err
    assert "your scorer hardly tells" in found["in_words"] and "SeVa" in found["advice"]
    labelled = [
        row for row in map(json.loads, (tmp_path / "runs/judge/judge.jsonl").open()) if row["image"][-5:] in ("0.png", "1.png")
    ]
    count = sum(one["place"] is not None for row in labelled for one in row["objects"])
    assert found["labels"]["true"] + found["labels"]["false"] == count > 0
    code, _, err = visalign(*photos, "--kind", "consistency", "--output", "other", "--reuse", "runs/judge")
    assert code == 0 and "samples: reused" in err


def test_the_tiny_model_is_only_taken_for_its_world(visalign, tmp_path):
    write_photos(tmp_path / "photos", 2)
    code, _, err = visalign("judge", "--images", "photos")
    assert code == 2 and "Which model?" in err


def test_a_run_that_the_gate_stops_says_so_on_its_page(visalign, tmp_path):
    """Before any training; with gate: warn the same command goes on."""
    (tmp_path / "mine.py").write_text("def alike(images, texts):\n    return [1.0] * len(texts)\n")
    settings = SETTINGS["csr"] | {"judge": {"check_images": 4, "samples": 2}, "rounds": 1}
    recipe = WORLD | {"method": "csr", "scorer": "mine.py:alike", "settings": settings}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    code, _, err = visalign("run", "-c", "mine.yaml", "--output", "out")
    assert code == 2 and "Stop: do not train on this judge: your scorer hardly" in err and "judge.gate=warn" in err
    page = (tmp_path / "out/report.html").read_text()
    assert "This run stopped at" in page and "Can its judge be trusted?" in page and "pairs in order" in page
    assert not (tmp_path / "out/trees.jsonl").exists() and not (tmp_path / "out/adapter").exists()


def test_the_demo_says_what_its_clip_is_worth_as_a_judge(monkeypatch, visalign, tmp_path):
    """Once, in one line before the training, and in the report."""
    monkeypatch.setattr(demo, "JUDGED", 4)
    small = ["--max-images", 12, "--iters", 2, "--batch-size", 2, "--set", "batch=8", "--output", "out"]
    preset = {**WORLD, "settings": SETTINGS["seva"]}
    (tmp_path / "seva.yaml").write_text(json.dumps({"method": "seva", "presets": {"tiny": preset}}))
    monkeypatch.setattr("mlx_visalign.cli.run.find_recipe", lambda name: tmp_path / f"{name}.yaml")
    code, out, err = visalign("demo", *small)
    assert code == 0, err
    assert err.count("The built-in CLIP as a judge, which CSR and FiSAO check before they train: ") == 1
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["judge"]["trust"]["images"] == 4 and report["judge"]["in_words"].split()[0] in " ".join(out.split())
    assert "SeVa needs no judge." in (tmp_path / "out/report.html").read_text()
    code, _, err = visalign("demo", *small)
    assert code == 0 and "nothing is left to do" in err and "as a judge" not in err


def test_a_dry_run_of_the_demo_checks_nothing(visalign, tmp_path):
    code, _, err = visalign("demo", "--dry-run")
    assert code == 0 and "as a judge" not in err and not list(tmp_path.iterdir())
