"""What each command does: it takes the parsed options and returns what is to be printed."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mlx_visalign.cli.model_commands import compare, doctor, evaluate_model, fuse_adapter, generate, upload_folder
from mlx_visalign.cli.output import Answers, Result, told
from mlx_visalign.cli.training_commands import align, check, train
from mlx_visalign.reporting.contact_sheet import Caption, Cell, Span, contact_sheet, save_sheet
from mlx_visalign.tiny_world import language, scenes
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.pretrain import train_world
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import named


def world(options: Namespace) -> Result:
    """`visalign world draw` and `visalign world train`."""
    if options.action == "train":
        train_world(Path(options.output), options.seed)
        return told({"folder": options.output})
    if not options.output.endswith(".png"):
        raise UserError(f"--output: the scenes are drawn to a PNG file, so a name ending in .png is expected: {options.output}")
    output = named(options.output)
    cells = [_cell(scene) for scene in scenes.split(options.split, options.count)]
    save_sheet(contact_sheet(cells, 4, f"The tiny world: {options.split} scenes", []), output)
    return told({"sheet": options.output})


def _cell(scene: scenes.Scene) -> Cell:
    return Cell(Image.fromarray(draw(scene)), (Caption(f"{scene.seed}", (Span(language.caption(scene.things)),)),))


COMMANDS: dict[str, Callable[[Namespace], Result | Answers]] = {
    "demo": align,
    "run": align,
    "train": train,
    "check": check,
    "compare": compare,
    "generate": generate,
    "eval": evaluate_model,
    "doctor": doctor,
    "world": world,
    "fuse": fuse_adapter,
    "upload": upload_folder,
}
