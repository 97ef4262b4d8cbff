"""Align a model on unlabelled images with a method."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_visalign import methods
from mlx_visalign.cli.output import Result, lines, planned
from mlx_visalign.cli.recipe_flags import as_given, recipe_values, run_options
from mlx_visalign.runs.recipe import find_recipe, list_recipes, make_plan
from mlx_visalign.utils.arguments import MODEL, Images, swallowed
from mlx_visalign.utils.config import dump
from mlx_visalign.utils.errors import UserError

if TYPE_CHECKING:
    from mlx_visalign.methods.job import Job

EXAMPLES = (
    "seva --model MODEL --images PHOTOS --output runs/photos",
    "seva --model MODEL --images PHOTOS --preset paper --dry-run",
    "-c my-recipe.yaml --set view=crop --set train.lora.rank=32",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", nargs="?", help="a method (see `visalign methods`); its recipe gives the settings")
    parser.add_argument("--method-file", metavar="FILE.py", help="a Python file with a method of your own")
    parser.add_argument(
        "--reward-file",
        dest="recipe.reward_function",
        metavar="FILE.py",
        help="for own_reward: a Python file with a function reward(images, prompts, answers) that returns numbers",
    )
    parser.add_argument("-c", "--config", metavar="RECIPE", help="a recipe file, or one of `visalign recipes`")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="which of the recipe's presets: laptop (the default); for seva, csr and fisao also paper or tiny",
    )
    parser.add_argument("--model", dest="recipe.model", metavar="MODEL", help=MODEL)
    parser.add_argument("--images", dest="recipe.images", action=Images, help="unlabelled images; subfolders are included")
    parser.add_argument(
        "--prompts", dest="recipe.prompts", metavar="FILE", help="your own prompts.jsonl; --images is the folder of its images"
    )
    parser.add_argument(
        "--vocabulary", dest="recipe.vocabulary", metavar="FILE", help="objects to ask about, in addition to COCO's 80"
    )
    parser.add_argument(
        "--skip-bad",
        dest="recipe.skip_bad",
        action="store_const",
        const=True,
        help="skip images and rows of --prompts that cannot be used",
    )
    run_options(parser, "runs/METHOD")


def run(options: argparse.Namespace, first: "Callable[[Job], None] | None" = None) -> Result:
    """Run the command; `first` is called before the training."""
    from rich.console import Group

    from mlx_visalign.pipeline.align import run_recipe
    from mlx_visalign.pipeline.dry_run import upper_bounds
    from mlx_visalign.reporting.summary import show
    from mlx_visalign.runs.run import Run

    if options.method_file is not None:
        options.method = methods.add_file(options.method_file)
    if options.config is None:
        swallowed(options, "recipe.images", "method")
    name = options.config or options.method
    if name is None:
        raise UserError("Name a method (visalign run seva ...) or a recipe (visalign run -c recipe.yaml ...).")
    values = recipe_values(options)
    if options.method is not None:
        _require_method(options.method)
        values["method"] = options.method
    recipe = methods.recipe_of(name) if options.config is None else find_recipe(name)
    plan = make_plan(recipe, methods.find, options.preset, values, as_given(options))
    if options.dry_run:
        return planned(upper_bounds(plan), dump(plan.config))
    run = Run(options.output or f"runs/{Path(name).stem}", reuse=options.reuse, command=options.again)
    report = run_recipe(plan, run, first=first)
    places = {"adapter": str(run.adapter), "report": str(run.page), "figures": str(run.report)}
    return Result(report | places, Group(show(report), lines(places)))


def _require_method(name: str) -> None:
    """Raise `UserError` for an unknown method; for a recipe's name, with the command that takes it."""
    try:
        methods.find(name)
    except UserError:
        if name == "dpo":
            raise UserError(
                "For DPO on your own pairs, use `visalign train --data PAIRS --model MODEL --adapter-path OUT`."
            ) from None
        if name in list_recipes():
            raise UserError(f"{name} is a recipe, not a method. Use `visalign run -c {name}`.") from None
        raise
