"""Command-line flags that override a recipe's values.

Such a flag has no default, and its destination is "recipe." followed by the value's dotted name: without the flag, the
recipe's value counts.
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
    """Overrides given on the command line: dotted names and values.

    None stands for --set NAME=null. Raises `UserError` where --set names a field of the recipe, not a method's setting.
    """
    flags = {name.removeprefix("recipe."): value for name, value in vars(options).items() if name.startswith("recipe.")}
    given = dict(options.set or ())
    for field in fields(Recipe):
        if f"settings.{field.name}" in given:
            option, line = f"use --{field.name.replace('_', '-')}", f"write `{field.name}: ...` beside its `settings`"
            where = option if field.name in flags else f"{line}, in a recipe file (-c FILE)"
            raise UserError(f"--set {field.name}: this is a field of the recipe, not a setting of the method; {where}.")
    return {name: value for name, value in flags.items() if value is not None} | given


def as_given(options: argparse.Namespace) -> Callable[[str], str]:
    """A function that names overrides as the user wrote them.

    --set train.epochs, or --max-images.
    """
    given = dict(options.set or ())

    def called(name: str) -> str:
        if name in given:
            return f"--set {name.removeprefix('settings.')}"
        return f"--{name.rpartition('.')[2].replace('_', '-')}"

    return called


def run_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--output", metavar="FOLDER", help=f"folder of the run; the same command resumes there; {output}")
    parser.add_argument("--reuse", metavar="RUN", help="copy finished stages of another run where settings are the same")
    parser.add_argument(
        "--max-images", "--count", dest="recipe.max_images", type=int, metavar="N", help="maximum number of images"
    )
    parser.add_argument(
        "--controls",
        dest="recipe.controls",
        action="store_const",
        const=True,
        help="also train the controls (needs images with known content)",
    )
    parser.add_argument("--cache-gb", dest="recipe.cache_gb", type=float, metavar="GB", help="memory for image features")
    parser.add_argument("--max-tokens", dest="recipe.settings.max_tokens", type=int, metavar="N", help="longest answer")
    training_options(parser, "recipe.settings.train.")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        type=method_setting,
        help="any setting of the method; --set help lists them",
    )
    link_option(parser)
    parser.add_argument("--seed", dest="recipe.seed", type=int, metavar="N", help="random seed")


def training_options(parser: argparse.ArgumentParser, section: str) -> None:
    parser.add_argument("--iters", dest=f"{section}iters", type=int, metavar="N", help="updates")
    parser.add_argument("--batch-size", dest=f"{section}batch_size", type=int, metavar="N", help="pairs per forward pass")
    parser.add_argument(
        "--learning-rate", dest=f"{section}learning_rate", type=float, metavar="RATE", help="peak learning rate"
    )
    parser.add_argument("--beta", dest=f"{section}beta", type=float, metavar="BETA", help="pull towards the reference")
    parser.add_argument(
        "--loss-type",
        dest=f"{section}loss_type",
        metavar="LOSS",
        help="loss of a pair: sigmoid (DPO), ipo, hinge, robust or mdpo",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print an estimate of work, memory and time; write nothing")


def data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="file of pairs, in the format of TRL, LLaVA, LlamaFactory, SeVa, CSR or RLAIF-V",
    )
    parser.add_argument("--images", action=OneFolder, help="folder of its images; default: the file's own folder")
    parser.add_argument("--skip-bad", action="store_true", help="skip rows that cannot be used, and count them")
    link_option(parser)
    parser.add_argument("--model", required=True, help=MODEL)


def setting(text: str) -> tuple[str, Any]:
    """Parse "train.iters=5" into ("train.iters", 5).

    A value that is not JSON (numbers, true, null, lists) is text.
    """
    name, equals, value = text.partition("=")
    if text == "help":  # not a setting, so the error about it lists them all
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
