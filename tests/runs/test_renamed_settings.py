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
    assert set(new.split(".")) <= settings_names() and new not in RENAMED


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


FISAO = {"model": "tiny", "images": "."}


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ("settings: {phrase: 'an {}', calibration_images: 7}", {}),
        ("settings: {judge: {phrase: 'a {}', check_images: 3}}", {"phrase": "an {}", "calibration_images": 7}),
        ("settings: {phrase: 'a {}', calibration_images: 7}", {"judge.phrase": "an {}"}),
        ("settings: {phrase: 'a {}', judge: {phrase: 'an {}', check_images: 7}}", {}),
    ],
)
def test_what_moved_into_a_section_is_found_there(file, flags, tmp_path, capsys):
    """In files and flags; the command line goes before the file, and in a file the new name before the old one."""
    path = tmp_path / "old.yaml"
    path.write_text(f"method: fisao\n{file}\n")
    given = FISAO | {f"settings.{name}": value for name, value in flags.items()}
    judge = make_plan(path, methods.find, None, given).settings.judge
    assert (judge.phrase, judge.check_images, judge.kind) == ("an {}", 7, "combined")
    said = capsys.readouterr().err
    assert said.count("The setting phrase is called judge.phrase now.") == 1


def test_a_moved_setting_beside_a_section_that_is_none(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("method: fisao\nsettings: {phrase: a, judge: 5}\n")
    with pytest.raises(UserError, match="judge: expected named values, got 5"):
        make_plan(path, methods.find, None, FISAO)


def test_what_an_older_run_of_fisao_wrote_down_is_the_same_setting():
    assert first_difference({"debias_images": 0}, {"judge": {"debias_images": 0}}) is None
    assert first_difference({"debias_images": 0}, {"judge": {"debias_images": 9}}) == ("judge.debias_images", 0, 9)


def test_a_misplaced_old_name_gets_the_new_one_as_a_hint():
    with pytest.raises(UserError, match=r"unknown name 'warmup'. Did you mean 'train.warmup_ratio'"):
        build(methods.find("seva").Settings, {"warmup": 0.1}, "settings")
