"""recipes/README.md names every setting with its default, what the presets set, every loss and every recipe; its code runs."""

import dataclasses
import json
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import get_args

import pytest
import yaml

from mlx_visalign import methods
from mlx_visalign.data.augment.views import AUGMENTATIONS
from mlx_visalign.runs.recipe import RECIPES, Recipe, find_recipe, list_recipes, make_plan
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.training.losses import LN2, LossType
from mlx_visalign.utils.schema import RENAMED

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TEXT = (Path(__file__).parents[2] / "recipes/README.md").read_text()
PRESETS = ("laptop", "paper")
OURS = [name for name in methods.names() if methods.find(name).Settings.__module__.startswith("mlx_visalign.")]


def rows_below(marker: re.Match) -> list[list[str]]:
    """The cells of the table behind a marker, without its head."""
    table = re.match(r"\n((?:\|.*\n)+)", TEXT[marker.end() :])[1].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def value(cell: str, kind: object = None):
    """What a cell says, as the setting's type has it."""
    given = yaml.safe_load(cell.strip("`")) if cell != "`{}`" else "{}"
    numbers = {float, float | None}
    return float(given) if kind in numbers and given is not None else given


def sections(kind: type, name: str = "") -> dict[type, str]:
    """A settings class and those of its sections, each with what the table puts before its names.

    The section `train` goes without: the same names serve `visalign train`.
    """
    found = {kind: f"{name}." if name not in ("", "train") else ""}
    for field, of in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(of):
            found |= sections(of, field)
    return found


KINDS = {Recipe: ""} | {kind: prefix for name in OURS for kind, prefix in sections(methods.find(name).Settings).items()}


def told(kind: type) -> dict[str, str]:
    """A settings class's names with the cells of their defaults, from all tables that name the class."""
    place, cells = f"{kind.__module__}:{kind.__qualname__}", {}
    for marker in re.finditer(r"<!-- defaults of (.+) -->", TEXT):
        classes = marker[1].split()
        if place in classes:
            for row in rows_below(marker):
                assert row[0] not in cells, f"{row[0]} of {place} stands there twice"
                cells[row[0]] = row[1 + classes.index(place)]
    return cells


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_stands_there_with_its_default(kind):
    kinds, cells = typing.get_type_hints(kind), told(kind)
    fields = {f"`{KINDS[kind]}{field.name}`": field for field in dataclasses.fields(kind)}
    assert sorted(cells) == sorted(fields)
    for name, field in fields.items():
        if cells[name] == "required":
            assert field.default in ("", dataclasses.MISSING), name
        elif not dataclasses.is_dataclass(kinds[field.name]):
            assert value(cells[name], kinds[field.name]) == field.default, name


@pytest.mark.parametrize("method", OURS)
def test_what_the_presets_set_stands_there(method):
    marker = re.search(f"<!-- presets of {method} -->", TEXT)
    there = yaml.safe_load((RECIPES / f"{method}.yaml").read_text())["presets"]
    presets = [leaves(method, preset) for preset in PRESETS if preset in there]
    plain = defaults(methods.find(method).Settings) | defaults(Recipe)
    changed = {name for preset in presets for name in preset if name in plain and preset[name] != plain[name]}
    rows = {row[0].strip("`"): row[1:] for row in rows_below(marker)}
    assert set(rows) == changed - {"method", "model", "images"}
    for name, cells in rows.items():
        meant = [preset[name] for preset in presets]
        assert [value(cell, type(one)) for cell, one in zip(cells, meant, strict=False)] == meant, name


SCALE = {
    *("model", "images", "max_images", "questions_per_image", "max_tokens", "exists_max_tokens", "sentence_tokens", "batch"),
    *("train.batch_size", "train.grad_accumulation_steps", "train.rollout_batch_size", "train.learning_rate"),
    *("train.value_learning_rate", "train.grad_checkpoint", "train.lora.rank"),
}


@pytest.mark.parametrize("method", ["seva", "csr", "fisao"])
def test_laptop_and_tiny_presets_are_one_form_at_two_scales(method):
    laptop, tiny = (leaves(method, preset) for preset in ("laptop", "tiny"))
    assert {name for name in laptop if laptop[name] != tiny[name]} <= SCALE


@pytest.mark.parametrize("method", ["seva", "csr", "fisao"])
def test_what_each_setting_of_form_brings_stands_there_as_measured(method):
    """The value is the preset's, the figures those of the ablation, and every row of it is there."""
    measured, laptop = json.loads((BENCHMARKS / f"results/{method}_ablation.json").read_text()), leaves(method, "laptop")
    rows = rows_below(re.search(f"<!-- form of {method} -->", TEXT))
    assert [cell(row[3]) for row in rows] == [*measured]
    for name, given, _, instead, *figures in rows:
        changed, found = cell(instead), measured[cell(instead)]
        if name:
            assert value(given) == laptop[cell(name)] and f"{cell(name)}=" in changed, changed
        seeds = ", ".join(f"{100 * one['f1']['value']:+.1f}" for one in found["seeds"].values())
        change = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * found["change"]["f1"][end] for end in ("value", "low", "high")))
        others = [f"{100 * found['after'][figure]['value']:.1f}" for figure in ("f1", "chair_i", "recall", "pope")]
        assert figures == [others[0], change, seeds, *others[1:]], changed
        assert len(found["seeds"]) == 3, changed


def cell(text: str) -> str:
    """A cell without its backticks; the form itself changes nothing."""
    return "" if text == "nothing" else text.strip("`")


def leaves(method: str, preset: str) -> dict[str, object]:
    """Every value of a preset by its dotted name, settings and the recipe's own fields alike."""
    config = make_plan(find_recipe(method), methods.find, preset, {"model": "tiny", "images": "."}).config
    return flat(config.pop("settings")) | config


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, one in values.items():
        found |= flat(one, f"{prefix}{name}.") if isinstance(one, dict) else {f"{prefix}{name}": one}
    return found


def defaults(kind: type) -> dict[str, object]:
    return flat(dataclasses.asdict(kind())) if kind is not Recipe else {f.name: f.default for f in dataclasses.fields(kind)}


def test_every_loss_stands_there():
    table = TEXT.partition("| `loss_type` | loss of a pair |")[2].partition("\n\n")[0]
    starts = dict(re.findall(r"^\| `(\w+)` \|.*?\| ([^|]+) \| \[", table, re.M))
    assert list(starts) == list(get_args(LossType))
    meant = {"ln 2": LN2, "3 ln 2": 3 * LN2, "1": 1.0, "1 / (2 beta)²": 25.0}
    for loss_type, start in starts.items():
        assert PreferenceSettings(loss_type=loss_type).loss.start == pytest.approx(meant[start])


def test_every_old_name_stands_there():
    assert dict(re.findall(r"`(\w+)`\s\(now\s`([\w.]+)`\)", TEXT)) == RENAMED


def test_every_recipe_and_view_stands_there():
    assert set(re.findall(r"^\| \[`(\w+)\.yaml`\]", TEXT, re.M)) == set(list_recipes())
    views = TEXT.partition("Other views:")[2].partition(".\n")[0]
    assert set(re.findall("`([a-z-]+)`", views)) == set(AUGMENTATIONS)
    for name in list_recipes():
        presets = yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("presets", {})
        row = re.search(rf"^\| \[`{name}\.yaml`\].*", TEXT, re.M)[0]
        assert [preset for preset in presets if f"`{preset}`" not in row] == []


def test_the_recipe_in_it_is_one(tmp_path):
    (tmp_path / "llava-4bit").mkdir()
    (tmp_path / "photos").mkdir()
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe | {"model": "tiny", "images": str(tmp_path / "photos")}))
    plan = make_plan(tmp_path / "own.yaml", methods.find)
    assert plan.settings.view == "diffusion-800" and plan.settings.train.lora.rank == 32


@pytest.mark.slow
def test_the_python_in_it_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) >= 6
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, check=True)
    assert (tmp_path / "my-adapter/adapters.safetensors").exists() and (tmp_path / "runs/first/report.html").exists()
