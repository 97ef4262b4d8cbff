"""List the built-in recipes."""

import argparse

from mlx_visalign.cli.output import Result, plain
from mlx_visalign.runs.recipe import list_recipes

EXAMPLES = ("",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(options: argparse.Namespace) -> Result:
    found = list_recipes()
    return Result(found, plain("\n".join(f"{name:12} {line}" for name, line in found.items())))
