from dataclasses import asdict, dataclass

import pytest
import yaml

from mlx_visalign.config import dump, load_recipe
from mlx_visalign.errors import UserError
from mlx_visalign.fields import build

RECIPE = """
method: seva
preset: laptop
presets:
  laptop:
    train: {iters: 200, learning_rate: 1e-5}
    steps: 500
  paper:
    train: {iters: 169, learning_rate: 2e-6}
train:
  iters: 100
"""


@dataclass(frozen=True)
class Train:
    iters: int
    learning_rate: float = 1.0


@dataclass(frozen=True)
class Settings:
    method: str
    train: Train
    steps: int = 800
    span: tuple[float, float] = (0.5, 1e-7)
    note: str = "1e-7"


@pytest.fixture
def recipe(tmp_path):
    def write(text=RECIPE):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_the_recipe_goes_over_its_preset_and_the_command_line_over_both(recipe):
    assert load_recipe(recipe()) == {
        "method": "seva",
        "train": {"iters": 100, "learning_rate": 1e-5},
        "steps": 500,
    }
    assert load_recipe(recipe(), "paper")["train"] == {"iters": 100, "learning_rate": 2e-6}
    overridden = load_recipe(recipe(), overrides={"train.iters": 7, "steps": 0, "train.learning_rate": None})
    assert overridden == {"method": "seva", "train": {"iters": 7, "learning_rate": 1e-5}, "steps": 0}
    assert load_recipe(recipe("a: 1")) == {"a": 1}


@pytest.mark.parametrize("text", ["1e-7", "2E-6", "-1e5", "1.5e7", "1.e3", ".5e2", "+3e+2", "1.0", "3.0e-4", "-.5"])
def test_a_number_is_a_number(recipe, text):
    value = load_recipe(recipe(f"rate: {text}"))["rate"]
    assert isinstance(value, float) and value == float(text)


@pytest.mark.parametrize("text", ["'1e-7'", "1e", "e-7", "1e-7x", "a1e5", "1e-7 s"])
def test_what_only_looks_like_a_number_stays_text(recipe, text):
    assert load_recipe(recipe(f"name: {text}"))["name"] == text.strip("'")


def test_the_rest_of_yaml_is_left_as_it_was():
    assert yaml.safe_load("a: 1e-7") == {"a": "1e-7"}


def test_what_is_dumped_reads_back_as_the_same_settings(recipe):
    settings = Settings("seva", Train(5, 1e-7), note="1e-7")
    text = dump(asdict(settings))
    assert build(Settings, load_recipe(recipe(text)), "recipe") == settings
    assert text.index("method") < text.index("train") < text.index("steps")
    assert dump({"note": "Zürich"}) == "note: Zürich\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "recipe.yaml is not a valid YAML file: 'a' is given twice(.|\n)*line 3"),
        ("train: {a: 1, a: 1}", "'a' is given twice"),
        ("a: [1", "not a valid YAML file"),
        ("a: 2024-99-99", "not a valid YAML file"),
        ("[" * 5000, "not a valid YAML file"),
        ("a: !!python/object/apply:os.system ['true']", "not a valid YAML file"),
        ("a: \x00", "not a valid YAML file"),
        ("- a", r"a recipe consists of named values, got \['a'\]"),
        ("", "a recipe consists of named values, got None"),
        ("preset: lapto\npresets: {laptop: {}}", "presets: unknown name 'lapto'. Did you mean 'laptop'?"),
        ("preset: laptop", "presets: unknown name 'laptop'"),
        ("preset: laptop\npresets: {laptop: 3}", "the preset 'laptop' must consist of named values, got 3"),
    ],
)
def test_a_bad_recipe_is_the_users_mistake(recipe, text, message):
    with pytest.raises(UserError, match=message):
        load_recipe(recipe(text))


def test_an_unknown_preset_or_name_is_met_with_the_nearest(recipe):
    with pytest.raises(UserError, match=r"unknown name 'papier'. Did you mean 'paper'\?"):
        load_recipe(recipe(), "papier")
    values = load_recipe(recipe(), overrides={"train.learning_rat": 1.0})
    with pytest.raises(UserError, match=r"recipe: train: unknown name 'learning_rat'. Did you mean 'learning_rate'\?"):
        build(Settings, values, "recipe")
