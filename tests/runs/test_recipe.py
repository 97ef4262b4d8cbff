"""Recipes: those that come along are whole, and what they set is checked by name, type and range."""

from dataclasses import fields

import pytest

from mlx_visalign import methods
from mlx_visalign.data.records import Prompt
from mlx_visalign.runs.recipe import Recipe, find_recipe, list_recipes, make_plan
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.config import dump, load_recipe
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import build


def plan(name="seva", preset=None, **values):
    return make_plan(find_recipe(name), methods.find, preset, {"model": "tiny", "images": "."} | values)


def test_the_recipes_that_come_along_say_what_they_are():
    recipes = list_recipes()
    assert {"seva", "csr", "dpo"} <= recipes.keys()
    assert recipes["seva"].startswith("SeVa: ") and recipes["csr"].startswith("CSR: ")


def test_the_paper_preset_holds_the_papers_numbers():
    settings = plan(preset="paper").settings
    assert settings.view == "diffusion-800" and settings.max_tokens == 512
    train = settings.train
    assert (train.beta, train.learning_rate, train.schedule, train.warmup_ratio) == (0.1, 2e-6, "cosine", 0.03)
    assert train.batch_size * train.grad_accumulation_steps == 128
    assert (train.lora.rank, train.lora.scale) == (1024, 2)


def test_the_laptop_preset_is_the_default_and_the_command_line_goes_over_it():
    assert plan().config == plan(preset="laptop").config
    assert (plan().settings.train.lora.rank, plan().settings.train.learning_rate) == (64, 1e-5)
    changed = plan(**{"settings.train.learning_rate": 5e-6, "seed": 3})
    assert changed.settings.train.learning_rate == 5e-6 and changed.recipe.seed == 3
    assert changed.settings.train.lora.rank == 64


def test_the_demo_needs_nothing_from_its_user():
    demo = make_plan(find_recipe("seva"), methods.find, "tiny")
    assert (demo.recipe.model, demo.recipe.images, demo.recipe.split) == ("tiny", "tiny-world", "validation")


def test_the_training_recipe_is_one_of_training_settings():
    assert build(PreferenceSettings, load_recipe(find_recipe("dpo")), "dpo").lora.rank == 64


@pytest.mark.parametrize("method", methods.names())
def test_what_is_a_recipes_own_is_no_setting_of_a_method(method):
    """So that --set can tell where a name belongs."""
    own, settings = ({field.name for field in fields(cls)} for cls in (Recipe, methods.find(method).Settings))
    assert own.isdisjoint(settings)


def test_a_config_is_a_recipe_again(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump(plan(max_images=5).config))
    assert make_plan(path, methods.find).config == plan(max_images=5).config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": None}, "Name either a folder of images"),
        ({"images": "tiny-world", "prompts": "prompts.jsonl", "max_images": 3}, "Name either a folder of images"),
        ({"images": "tiny-world"}, "How many scenes of the tiny world"),
        ({"images": "nowhere"}, "images: there is no file or folder nowhere"),
        ({"max_images": 0}, "max_images is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"modell": "m"}, "unknown name 'modell'. Did you mean 'model'"),
        ({"settings.viev": "crop"}, "settings.viev: unknown name 'viev'. Did you mean 'view'"),
        ({"settings.train.beta": "x"}, "beta must be a number"),
        ({"method": "sevva"}, "There is no method 'sevva'. Did you mean 'seva'"),
        ({"controls": True}, "Controls need images whose content is known"),
        ({"split": "test"}, "split must be one of validation, held-out"),
    ],
)
def test_what_makes_no_sense_is_the_users_mistake(values, message):
    with pytest.raises(UserError, match=message):
        plan(**values)


def test_an_unknown_recipe_is_met_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'seva'"):
        find_recipe("sevaa")


@pytest.mark.parametrize("preset", ["laptop", "paper", "tiny"])
def test_fisaos_presets_make_as_many_updates_as_their_images_allow(preset):
    """Every image answered `epochs` times, every answer learned from `num_ppo_epochs` times."""
    overrides = {} if preset == "tiny" else {"model": "tiny", "images": "."}
    made = make_plan(find_recipe("fisao"), methods.find, preset, overrides)
    train, images = made.settings.train, made.recipe.max_images
    asked = [Prompt(str(n), "a.png", "?", "describe") for n in range(images)]
    updates = images * train.epochs * train.num_ppo_epochs / (train.batch_size * train.grad_accumulation_steps)
    found = train.loop(len(made.settings.prompts_used(asked))).iters
    assert found == pytest.approx(updates, rel=0.03) and found > 200
    if preset == "paper":
        assert found == 4 * 500
    assert made.settings.train.lora.scale == 2
