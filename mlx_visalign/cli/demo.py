"""Align the built-in tiny LLaVA and show what changed."""

import argparse

from mlx_visalign.cli.recipe_flags import run_options
from mlx_visalign.cli.run import run

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "",
    "--seed 1 --output runs/demo-1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    run_options(parser, "runs/demo")
    parser.set_defaults(config="seva", method=None, method_file=None, preset="tiny", output="runs/demo")
