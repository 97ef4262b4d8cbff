"""What the command line does, for notebooks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlx_visalign import methods
from mlx_visalign.pipeline.align import run_recipe
from mlx_visalign.runs.recipe import find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import Score, checked, find_scorer
from mlx_visalign.utils.config import dotted_values
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import are_followed, following_links
from mlx_visalign.utils.schema import shown


def align(
    recipe: str | Path = "seva",
    *,
    output: str | Path,
    preset: str | None = None,
    reuse: str | Path | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    follow_links: bool = False,
    **values: Any,
) -> dict[str, Any]:
    """Align a model as `visalign run` does, and return the report (what report.json holds).

    recipe      a method's name, a recipe file, or a file with a method of your own (its name ends in .py)
    output      the run's folder; with the same one and the same settings a stopped run goes on
    on_metrics  gets a row, a dict, after every update: print it, plot it, or raise KeyboardInterrupt to stop
    settings    the method's settings that differ from the recipe: {"view": "crop", "train": {"epochs": 2}}; None sets null
    follow_links  whether links in your folders may lead out of them
    values      fields of `Recipe` that differ: model, images, count, seed and so on; None sets null. `scorer` may be the
                function itself

    Raises `UserError`, in a sentence, for whatever is missing, unknown, of the wrong type or out of its range.
    """
    _require("recipe", recipe, (str, Path), "a method's name or a recipe file")
    _require("output", output, (str, Path), "a folder's path")
    _require("preset", preset, (str, type(None)), "a preset's name")
    _require("reuse", reuse, (str, Path, type(None)), "a run's folder")
    _require("settings", settings, (Mapping, type(None)), 'named values, such as {"train": {"epochs": 2}}')
    if on_metrics is not None and not callable(on_metrics):
        raise UserError(f"on_metrics must be a function that takes a dict, got {shown(on_metrics)}.")
    score = None
    if callable(values.get("scorer")):
        score = values["scorer"]
        values["scorer"] = _name_of(score)
    overrides = {**_plain(values), **_plain(dotted_values(settings or {}, "settings."))}
    if Path(recipe).suffix == ".py":
        recipe = overrides["method"] = methods.add_file(recipe)
    path = methods.recipe_of(str(recipe)) if str(recipe) in methods.names() else find_recipe(str(recipe))
    plan = make_plan(path, methods.find, preset, overrides, _as_given)
    name = plan.recipe.scorer
    if name is not None:
        score = find_scorer(name) if score is None else checked(score, name)
    with following_links(follow_links or are_followed()):
        return run_recipe(plan, Run(output, reuse=reuse), on_metrics, score)


def _name_of(scorer: Score) -> str:
    """By which a run knows a function again."""
    named = scorer if hasattr(scorer, "__qualname__") else type(scorer)
    return f"{named.__module__}:{named.__qualname__}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as texts, as recipes have them."""
    return {name: _in_words(value) for name, value in values.items()}


def _as_given(name: str) -> str:
    """An override as its user wrote it: the argument count=, or the setting train.epochs."""
    return f"The setting {name.removeprefix('settings.')}" if name.startswith("settings.") else f"The argument {name}="


def _require(name: str, value: object, kinds: tuple[type, ...], words: str) -> None:
    if not isinstance(value, kinds):
        raise UserError(f"The argument {name}= must be {words}, got {shown(value)}.")


def _in_words(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_in_words(one) for one in value]
    return str(value) if isinstance(value, Path) else value
