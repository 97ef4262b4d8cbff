"""A scorer of one's own: found by its name, given to the method, refused where nothing is scored."""

import pytest

from mlx_visalign.cli import find_method, find_scorer
from mlx_visalign.errors import UserError
from mlx_visalign.recipe import find_recipe, make_plan


def test_a_function_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_scorer_of_reds.py").write_text("def reds(images, texts):\n    return [float('red' in t) for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    assert find_scorer("my_scorer_of_reds:reds")(["a.png"] * 2, ["a red cat", "a cat"]) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["no_such_module:f", "json:no_such_function", "json", ":f", "json:__name__", ""])
def test_what_is_no_function_says_so(name):
    with pytest.raises(UserError, match="MODULE:FUNCTION"):
        find_scorer(name)


def test_a_method_that_scores_nothing_refuses_a_scorer():
    values = {"images": ".", "scorer": "json:dumps"}
    with pytest.raises(UserError, match="seva scores nothing"):
        make_plan(find_recipe("seva"), find_method, None, values)
    assert make_plan(find_recipe("csr"), find_method, None, values).recipe.scorer == "json:dumps"


@pytest.mark.parametrize("preset", ["laptop", "paper", "tiny"])
def test_csrs_presets_are_settings(preset):
    settings = make_plan(find_recipe("csr"), find_method, preset, {"images": ".", "count": 1}).settings
    assert settings.reward.kind == ("calibrated" if preset == "tiny" else "rank")
    assert (settings.prune, settings.rounds) == (("language", 3) if preset == "paper" else ("reward", 1))
