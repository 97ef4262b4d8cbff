"""The options of every command, as argparse declares them. Nothing is imported here that `--help` would wait for."""

import argparse
from typing import Any

from mlx_visalign.cli.model_options import compare, doctor, evaluate, fuse, generate, upload
from mlx_visalign.cli.training_options import check, demo, run, train
from mlx_visalign.utils.arguments import SPLITS, command, positive
from mlx_visalign.utils.flags import Parser

EXAMPLES = """
  visalign demo                                       a small LLaVA learns to see better, in minutes
  visalign run seva --model MODEL --images PHOTOS     align a model on a folder of unlabelled images
  visalign convert llava --hf-path HF --mlx-path M    a Hugging Face LLaVA as a folder that MLX loads
  visalign generate --model MODEL --adapter-path runs/seva/adapter --image cat.jpg --prompt "What is this?"
  visalign COMMAND --help                             a command's options, with examples
"""


TO_BEGIN_WITH = """
To begin with:
  visalign demo                                       see it work, on a small LLaVA that is built in
  visalign doctor --model MODEL                       is your model whole, and does it fit this machine?
  visalign run seva --model MODEL --images PHOTOS     align it on a folder of your photos
"""


def build_parser(version: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog="visalign",
        description="Self-alignment for LLaVA models: from unlabelled images to an adapter that hallucinates less.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"visalign {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        demo,
        run,
        train,
        check,
        generate,
        compare,
        evaluate,
        doctor,
        _world,
        _convert,
        fuse,
        upload,
        _methods,
        _recipes,
    ):
        add(commands)
    return parser


def _world(commands: Any) -> None:
    parser = commands.add_parser("world", help="the tiny world: draw its scenes, train its models again", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    draw = command(actions, "draw", "draw scenes with what is in them", "visalign world draw --output scenes.png")
    draw.add_argument("--output", metavar="FILE.png", required=True, help="the picture")
    draw.add_argument("--split", default="unlabelled", choices=SPLITS, help="%(default)s")
    draw.add_argument("--count", type=positive, metavar="N", default=12, help="how many; %(default)s")
    train = command(
        actions,
        "train",
        "train the tiny CLIP and the tiny LLaVA from nothing, in about half an hour",
        "visalign world train --output my-world --seed 7",
    )
    train.add_argument("--output", metavar="FOLDER", required=True, help="where both go")
    train.add_argument("--seed", type=int, metavar="N", default=0, help="everything random depends on it; %(default)s")


def _convert(commands: Any) -> None:
    """Only to be listed: cli hands the command over to `convert.cli`, where its options are."""
    commands.add_parser("convert", help="convert models and adapters to MLX and back", add_help=False)


def _methods(commands: Any) -> None:
    command(commands, "methods", "list the methods", "visalign methods")


def _recipes(commands: Any) -> None:
    command(commands, "recipes", "list the recipes that come along", "visalign recipes")
