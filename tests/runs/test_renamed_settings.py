"""Settings of an old name: understood where the new one is a setting, in files, flags and what older runs wrote down."""

import json
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from mlx_visalign import methods
from mlx_visalign.cli.main import main
from mlx_visalign.runs.recipe import Recipe, make_plan
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils import schema
from mlx_visalign.utils.config import load_recipe
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.provenance import first_difference
from mlx_visalign.utils.schema import RENAMED, build


@pytest.fixture(autouse=True)
def warn_again():
    schema._warn_renamed.cache_clear()


def settings_names():
    """Every setting there is."""
    names, classes = set(), [Recipe, PreferenceSettings, *(methods.find(name).Settings for name in methods.names())]
    while classes:
        kinds = get_type_hints(cls := classes.pop())
        names |= {field.name for field in fields(cls)}
        classes += [kind for kind in kinds.values() if is_dataclass(kind)]
    return names


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_every_new_name_is_that_of_a_setting(old, new):
    assert new in settings_names() and new not in RENAMED


def test_an_old_name_is_understood_and_told_once(capsys):
    made = build(PreferenceSettings, {"warmup": 0.5, "grad_accumulation": 2}, "here")
    assert (made.warmup_ratio, made.grad_accumulation_steps) == (0.5, 2)
    build(PreferenceSettings, {"warmup": 0.1}, "here")
    assert capsys.readouterr().err.count("The setting warmup is called warmup_ratio now.") == 1


@pytest.mark.parametrize(("low", "high"), [("warmup_ratio", "warmup"), ("warmup", "warmup_ratio"), ("warmup", "warmup")])
def test_the_command_line_goes_before_the_file_by_either_name(tmp_path, low, high):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"train: {{{low}: 0.1}}")
    values = load_recipe(file, overrides={f"train.{high}": 0.2})
    assert build(PreferenceSettings, values["train"], "recipe").warmup_ratio == 0.2


@pytest.mark.parametrize(("method", "name"), [("seva", "view"), ("csr", "clip_aspect"), ("fisao", "clip_aspect")])
def test_view_is_sevas_own_and_an_old_name_elsewhere(method, name):
    where = {"model": "tiny", "images": ".", "settings.view": "crop"}
    assert getattr(make_plan(methods.recipe_of(method), methods.find, None, where).settings, name) == "crop"


@pytest.mark.parametrize("flag", ["--max-images", "--count"])
def test_the_recipes_own_settings_and_flags_too(flag, capsys):
    command = ["run", "seva", "--model", "tiny", "--images", "tiny-world", flag, "9", "--dry-run", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 9
    plan = make_plan(methods.recipe_of("seva"), methods.find, None, {"images": "tiny-world", "count": 3, "scenes": 2})
    assert (plan.recipe.max_images, plan.recipe.eval_images) == (3, 2)


def test_what_an_older_run_wrote_down_is_the_same_setting():
    assert first_difference({"train": {"warmup": 0.1}}, {"train": {"warmup_ratio": 0.1}}) is None
    assert first_difference({"groups": 3}, {"num_beam_groups": 5}) == ("num_beam_groups", 3, 5)


def test_a_misplaced_old_name_gets_the_new_one_as_a_hint():
    with pytest.raises(UserError, match=r"unknown name 'warmup'. Did you mean 'train.warmup_ratio'"):
        build(methods.find("seva").Settings, {"warmup": 0.1}, "settings")
