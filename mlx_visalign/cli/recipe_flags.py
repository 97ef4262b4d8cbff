"""Flags that several commands have for a recipe's values, and what the command line then says.

A flag that sets a recipe's value has the value's dotted name, behind "recipe.", as its destination and no default: what is
not given on the command line is the recipe's to say.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from mlx_visalign.runs.recipe import Recipe
from mlx_visalign.utils.arguments import MODEL, OneFolder, link_option
from mlx_visalign.utils.errors import UserError


def recipe_values(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says in place of a recipe: dotted names and values, None for --set NAME=null.

    Raises `UserError` where --set names what is the recipe's own, and no setting of a method.
    """
    flags = {name.removeprefix("recipe."): value for name, value in vars(options).items() if name.startswith("recipe.")}
    said = dict(options.set or ())
    for field in fields(Recipe):
        if f"settings.{field.name}" in said:
            option, line = f"say --{field.name.replace('_', '-')}", f"write `{field.name}: ...` beside its `settings`"
            where = option if field.name in flags else f"{line}, in a file of your own (-c FILE)"
            raise UserError(f"--set {field.name}: this belongs to the recipe and is no setting of the method; {where}.")
    return {name: value for name, value in flags.items() if value is not None} | said


def as_given(options: argparse.Namespace) -> Callable[[str], str]:
    """What gives the words of the command line for one of `recipe_values`: --set train.epochs, or --max-images."""
    said = dict(options.set or ())

    def called(name: str) -> str:
        if name in said:
            return f"--set {name.removeprefix('settings.')}"
        return f"--{name.rpartition('.')[2].replace('_', '-')}"

    return called


def run_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument(
        "--output", metavar="FOLDER", help=f"where everything goes, and where the same command goes on; {output}"
    )
    parser.add_argument("--reuse", metavar="RUN", help="take over what another run did, where its settings are the same")
    parser.add_argument(
        "--max-images", "--count", dest="recipe.max_images", type=int, metavar="N", help="maximum number of images"
    )
    parser.add_argument(
        "--controls",
        dest="recipe.controls",
        action="store_const",
        const=True,
        help="then train the controls too (only where the content of images is known)",
    )
    parser.add_argument("--cache-gb", dest="recipe.cache_gb", type=float, metavar="GB", help="memory for image features")
    parser.add_argument("--max-tokens", dest="recipe.settings.max_tokens", type=int, metavar="N", help="longest answer")
    training_options(parser, "recipe.settings.train.")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        type=method_setting,
        help="any setting of the method; --set help names them",
    )
    link_option(parser)
    parser.add_argument("--seed", dest="recipe.seed", type=int, metavar="N", help="everything random depends on it")


def training_options(parser: argparse.ArgumentParser, section: str) -> None:
    parser.add_argument("--iters", dest=f"{section}iters", type=int, metavar="N", help="updates")
    parser.add_argument("--batch-size", dest=f"{section}batch_size", type=int, metavar="N", help="pairs in one forward")
    parser.add_argument(
        "--learning-rate", dest=f"{section}learning_rate", type=float, metavar="RATE", help="the schedule's peak"
    )
    parser.add_argument(
        "--beta", dest=f"{section}beta", type=float, metavar="BETA", help="strength of the pull to the reference"
    )
    parser.add_argument(
        "--loss-type",
        dest=f"{section}loss_type",
        metavar="LOSS",
        help="loss of a pair: sigmoid, which is DPO, ipo, hinge, robust or mdpo",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be done: rows, updates, memory; nothing is written"
    )


def data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="pairs: TRL's, LLaVA's, LlamaFactory's, SeVa's, CSR's or RLAIF-V's columns",
    )
    parser.add_argument("--images", action=OneFolder, help="what image paths in it are relative to; its own folder")
    parser.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be used, and count them")
    link_option(parser)
    parser.add_argument("--model", required=True, help=MODEL)


def setting(text: str) -> tuple[str, Any]:
    """("train.iters", 5) for "train.iters=5"; a value that is not JSON (numbers, true, null, lists) is text."""
    name, equals, value = text.partition("=")
    if text == "help":  # which is no setting, so that its error names them all
        return text, None
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def method_setting(text: str) -> tuple[str, Any]:
    name, value = setting(text)
    return f"settings.{name}", value
