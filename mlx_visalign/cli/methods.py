"""List the methods."""

import argparse

from mlx_visalign.cli.output import Result, plain
from mlx_visalign.methods import descriptions

EXAMPLES = ("",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(options: argparse.Namespace) -> Result:
    found = descriptions()
    return Result(found, plain("\n".join(f"{name:12} {line}" for name, line in found.items())))
