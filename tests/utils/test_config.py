from dataclasses import asdict, dataclass

import pytest
import yaml

from mlx_visalign.utils.config import dump, load_recipe, with_overrides
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import build

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
    assert overridden == {"method": "seva", "train": {"iters": 7, "learning_rate": None}, "steps": 0}
    assert load_recipe(recipe("a: 1")) == {"a": 1}


def test_null_is_a_value_wherever_it_is_said(recipe):
    """Over a preset, over the recipe and over both: what is not said is left as it is, and what is said is null."""
    text = "presets: {a: {gap: 2.0, train: {iters: 5, beta: 0.1}}}\npreset: a\ntrain: {iters: null}\n"
    assert load_recipe(recipe(text)) == {"gap": 2.0, "train": {"iters": None, "beta": 0.1}}
    assert load_recipe(recipe(text), overrides={"gap": None, "train.beta": None})["gap"] is None
    assert load_recipe(recipe(text), overrides={"train": None})["train"] is None
    assert load_recipe(recipe(text + "gap: null"))["gap"] is None


def test_an_error_is_told_of_whoever_made_it(recipe):
    path = recipe("method: seva\ntrain: {iters: 5}\nsteps: 3")

    def told(text="", **overrides):
        path.write_text("method: seva\ntrain: {iters: 5}\n" + text)
        names = {name.replace("__", "."): value for name, value in overrides.items()}
        with pytest.raises(UserError) as error:
            with_overrides(lambda values: build(Settings, values, str(path)), path, None, names, lambda name: f"--{name}")
        return str(error.value)

    assert told("steps: x") == f"{path}: steps must be a whole number, got the text 'x'."
    assert told("steps: x", note="fine").startswith(str(path))
    assert told(steps="x") == "--steps must be a whole number, got the text 'x'."
    assert told(train__iters=None) == "--train.iters must be a whole number, got nothing (null)."
    assert told(train__iter=3) == "--train.iter: unknown name 'iter'. Did you mean 'iters'?"
    assert told(iter=3) == "--iter: unknown name 'iter'. Did you mean 'train.iters'?"


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
        ("", "a recipe consists of named values, got nothing"),
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
