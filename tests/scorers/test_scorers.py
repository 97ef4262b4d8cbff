"""A scorer of one's own: found by its name, given to the method, refused where nothing is scored."""

import json
from pathlib import Path

import pytest

from mlx_visalign import methods
from mlx_visalign.cli.main import main
from mlx_visalign.data.records import read_jsonl
from mlx_visalign.methods.csr.rewards import Tree
from mlx_visalign.runs.recipe import find_recipe, make_plan
from mlx_visalign.scorers import checked, find_scorer
from mlx_visalign.scorers.trust import JudgedImage
from mlx_visalign.utils.errors import UserError


def test_a_function_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_scorer_of_reds.py").write_text("def reds(images, texts):\n    return [float('red' in t) for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    assert find_scorer("my_scorer_of_reds:reds")([Path("a.png")] * 2, ["a red cat", "a cat"]) == [1.0, 0.0]


@pytest.mark.parametrize("given", [[1.0], [1.0, None], [1.0, float("nan")], None, [[1.0, 2.0]] * 2])
def test_what_is_not_a_number_for_every_text_says_so(given):
    with pytest.raises(UserError, match="'mine:f' should return 2 finite numbers, one for each text; it returned"):
        checked(lambda images, texts: given, "mine:f")([Path("a.png")] * 2, ["a", "b"])


def test_a_scorer_is_not_asked_about_nothing():
    assert checked(lambda images, texts: 1 / 0, "mine:f")([], []) == []


def test_what_a_scorer_raises_has_its_place():
    with pytest.raises(
        UserError, match=r"'mine:f' failed in .*test_scorers\.py, line \d+ \(ZeroDivisionError: division by zero"
    ):
        checked(lambda images, texts: [1 / 0], "mine:f")([Path("a.png")], ["a"])


def test_a_file_that_does_not_run_says_so(tmp_path, monkeypatch):
    (tmp_path / "my_broken_scorer.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"SyntaxError.*MODULE:FUNCTION"):
        find_scorer("my_broken_scorer:f")


TRAIN = {"batch_size": 2, "iters": 1, "lora": {"rank": 2}}
JUDGE = {"kind": "clip", "phrase": "{}", "debias_images": 0, "check_images": 6, "samples": 2, "gate": "warn"}
SMALL = {
    "csr": {"num_beam_groups": 2, "sentence_tokens": 14, "max_tokens": 30, "batch": 2, "judge": JUDGE, "train": TRAIN},
    "fisao": {
        "max_tokens": 32,
        "judge": JUDGE,
        "labels": "tiny-world",
        "min_mentions": 1,
        "reward": {"shape": "affine"},
        "train": TRAIN | {"rollout_batch_size": 2, "grad_accumulation_steps": 1},
    },
}


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", SMALL)
def test_a_recipe_names_a_scorer(method, tmp_path, monkeypatch, capsys):
    """From the command line to the trained model: what the user's function says of a text is what the method goes by."""
    (tmp_path / "my_scorer_of_scenes.py").write_text(
        "import re\n"
        "from mlx_visalign.tiny_world.scenes import scene\n"
        "def fits(images, texts):\n"
        "    numbers = [re.findall('[0-9]+', image.name) for image in images]  # the blank image has none\n"
        "    types = [scene(int(number[0])).types if number else () for number in numbers]\n"
        "    return [float(any(str(t) in text for t in some)) for some, text in zip(types, texts)]\n"
    )
    recipe = {
        "method": method,
        "images": "tiny-world",
        "max_images": 10,
        "questions_per_image": 0,
        "eval_images": 1,
        "settings": SMALL[method],
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe | {"scorer": "my_scorer_of_scenes:fits"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"mlx_visalign.methods.{method}.picture", stop)  # all is done by then
    assert main(["run", "-c", "mine.yaml", "--output", "out"]) == 130, capsys.readouterr().err
    assert (tmp_path / "out/adapter/adapters.safetensors").exists()
    if method == "csr":
        scores = [s.image for tree in read_jsonl(tmp_path / "out/trees.jsonl", Tree) for s in tree.sentences if s.text]
    else:
        scores = [one.own["clip"] for row in read_jsonl(tmp_path / "out/judge.jsonl", JudgedImage) for one in row.objects]
    assert {0.0, 1.0} <= set(scores) <= {0.0, 1.0, None}


@pytest.mark.parametrize("name", ["no_such_module:f", "json:no_such_function", "json", ":f", "json:__name__", ""])
def test_what_is_no_function_says_so(name):
    with pytest.raises(UserError, match="MODULE:FUNCTION"):
        find_scorer(name)


def test_a_method_that_scores_nothing_refuses_a_scorer():
    values = {"model": "tiny", "images": ".", "scorer": "json:dumps"}
    with pytest.raises(UserError, match="seva uses no scorer"):
        make_plan(find_recipe("seva"), methods.find, None, values)
    assert make_plan(find_recipe("csr"), methods.find, None, values).recipe.scorer == "json:dumps"


@pytest.mark.parametrize("preset", ["laptop", "paper", "tiny"])
def test_csrs_presets_are_settings(preset):
    settings = make_plan(find_recipe("csr"), methods.find, preset, {"model": "tiny", "images": ".", "max_images": 1}).settings
    assert settings.reward.kind == ("rank" if preset == "paper" else "centred")
    assert (settings.judge.kind, settings.judge.gate) == (("clip", "warn") if preset == "paper" else ("combined", "stop"))
    assert (settings.prune, settings.rounds) == (("language", 3) if preset == "paper" else ("reward", 1))
