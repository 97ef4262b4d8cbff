"""Align the built-in tiny LLaVA and show what changed.

Before the training it shows what the check of a judge says, as CSR and FiSAO make it, about the built-in CLIP.
"""

import argparse
from typing import TYPE_CHECKING

from mlx_visalign.cli import run as runs
from mlx_visalign.cli.output import Result
from mlx_visalign.cli.recipe_flags import run_options

if TYPE_CHECKING:
    from mlx_visalign.methods.job import Job

EXAMPLES = (
    "",
    "--seed 1 --output runs/demo-1",
)

JUDGED = 60  # images that the judge is checked on: seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    run_options(parser, "runs/demo")
    parser.set_defaults(config="seva", method=None, method_file=None, preset="tiny", output="runs/demo")


def run(options: argparse.Namespace) -> Result:
    return runs.run(options, first=_check_judge)


def _check_judge(job: "Job") -> None:
    from mlx_visalign.pipeline.judge_check import check_beside

    check_beside(job, JUDGED)
