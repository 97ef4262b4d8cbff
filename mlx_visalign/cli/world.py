"""Draw scenes of the tiny world, or retrain its models."""

import argparse
from pathlib import Path

from mlx_visalign.cli.output import Result
from mlx_visalign.utils.arguments import SPLITS, command, positive
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import named

EXAMPLES = ("draw --output scenes.png", "train --output my-world --seed 7")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    draw = command(actions, "draw", "draw scenes with their captions", "visalign world draw --output scenes.png")
    draw.add_argument("--output", metavar="FILE.png", required=True, help="the image file to write")
    draw.add_argument("--split", default="unlabelled", choices=SPLITS, help="%(default)s")
    draw.add_argument("--count", type=positive, metavar="N", default=12, help="number of scenes; %(default)s")
    train = command(
        actions,
        "train",
        "train the tiny CLIP and the tiny LLaVA from scratch, in about half an hour",
        "visalign world train --output my-world --seed 7",
    )
    train.add_argument("--output", metavar="FOLDER", required=True, help="folder for both models")
    train.add_argument("--seed", type=int, metavar="N", default=0, help="random seed; %(default)s")


def run(options: argparse.Namespace) -> Result:
    return _train(options) if options.action == "train" else _draw(options)


def _train(options: argparse.Namespace) -> Result:
    from mlx_visalign.tiny_world.pretrain import train_world

    train_world(Path(options.output), options.seed)
    return Result.from_dict({"folder": options.output})


def _draw(options: argparse.Namespace) -> Result:
    from PIL import Image

    from mlx_visalign.reporting.contact_sheet import Caption, Cell, Span, contact_sheet, save_sheet
    from mlx_visalign.tiny_world import language, scenes
    from mlx_visalign.tiny_world.drawing import draw

    if not options.output.endswith(".png"):
        raise UserError(f"--output: expected a file name that ends in .png, got {options.output}.")
    output = named(options.output)
    cells = [
        Cell(Image.fromarray(draw(scene)), (Caption(f"{scene.seed}", (Span(language.caption(scene.things)),)),))
        for scene in scenes.split(options.split, options.count)
    ]
    save_sheet(contact_sheet(cells, 4, f"The tiny world: {options.split} scenes", []), output)
    return Result.from_dict({"sheet": options.output})
