"""What the command line does, for notebooks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_visalign.cli import find_method, find_scorer
from mlx_visalign.links import are_followed, following_links
from mlx_visalign.pipeline import run_recipe
from mlx_visalign.recipe import find_recipe, make_plan
from mlx_visalign.run import Run


def align(
    recipe: str = "seva",
    *,
    output: str | Path,
    preset: str | None = None,
    reuse: str | Path | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    settings: dict[str, Any] | None = None,
    follow_links: bool = False,
    **values: Any,
) -> dict[str, Any]:
    """Align a model as `visalign run` does, and return the report (what report.json holds).

    recipe      a method's name or a recipe file
    output      the run's folder; with the same one and the same settings a stopped run goes on
    on_metrics  gets a row, a dict, after every update: print it, plot it, or raise KeyboardInterrupt to stop
    settings    the method's settings that differ from the recipe: {"view": "crop", "train": {"epochs": 2}}
    follow_links  whether links in your folders may lead out of them
    values      fields of `Recipe` that differ: model, images, count, seed and so on
    """
    overrides = {name: _in_words(value) for name, value in values.items()}
    overrides["settings"] = settings
    plan = make_plan(find_recipe(recipe), find_method, preset, overrides)
    score = find_scorer(plan.recipe.scorer) if plan.recipe.scorer else None
    with following_links(follow_links or are_followed()):
        return run_recipe(plan, Run(output, reuse=reuse), on_metrics, score)


def _in_words(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_in_words(one) for one in value]
    return str(value) if isinstance(value, Path) else value
