"""Show a pairs file as it will be trained."""

import argparse

from mlx_visalign.cli.output import Result, lines
from mlx_visalign.cli.recipe_flags import data_options
from mlx_visalign.utils.arguments import require_there
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import listed
from mlx_visalign.utils.formatting import counted

EXAMPLES = ("--data pairs.jsonl --model MODEL",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    data_options(parser)


def run(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from mlx_visalign.inference.context_length import pairs_that_fit, too_long
    from mlx_visalign.inference.policy import load
    from mlx_visalign.pipeline.pair_statistics import measure, show_pair
    from mlx_visalign.pipeline.pair_training import read_pairs

    require_there(options, "data", "images")
    placed, found = read_pairs(options.data, options.images, options.skip_bad)
    policy = load(options.model)
    if options.skip_bad:
        placed = pairs_that_fit(policy, placed, skip_bad=True)
    elif faults := [fault for one in placed if (fault := too_long(policy, one))]:
        say(
            listed(
                f"{len(faults):,} of the {counted(len(placed), 'pair')} cannot be trained",
                faults,
                "Leave them out with --skip-bad.",
            )
        )
    pairs = [one.pair for one in placed]
    figures = {"format": found, **measure(policy, pairs)}
    first = show_pair(policy, pairs[0])
    return Result(figures | {"first_pair": first.plain}, Group(lines(figures), "", "The first pair:", first))
