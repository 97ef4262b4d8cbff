"""Command-line arguments shared by several commands; imports nothing slow."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_visalign.utils.errors import refuse

DESCRIBE = "Describe this image in detail."  # the toolkit's default question, defined here alone
SPLITS = ("pretraining", "unlabelled", "validation", "held-out")


def command(commands: Any, name: str, about: str, *examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog="\n  ".join(("examples:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON; everything else goes to stderr")
    return parser


MODEL = 'LLaVA model: a folder, a Hub name (owner/name), or "tiny", the built-in toy model'


def require_there(options: argparse.Namespace, *names: str) -> None:
    """UserError naming every option whose path does not exist."""
    given = {name: getattr(options, name) for name in names}
    missing = {name: path for name, path in given.items() if path is not None and not Path(path).exists()}
    refuse([f"--{name}: there is no file or folder {path}." for name, path in missing.items()])


def model_options(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("--model", required=required, help=MODEL if required else f"{MODEL} (default: tiny)")
    parser.add_argument("--adapter-path", metavar="FOLDER", help="LoRA adapter to load on top of it: a folder or a Hub name")
    link_option(parser)


def link_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow-links", action="store_true", help="follow symlinks that point outside your folders")


def sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", metavar="TEXT", default=DESCRIBE, help="question to ask (default: %(default)s)")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", default=256, help="maximum answer length in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--temp", "--temperature", type=_temperature, metavar="T", default=0.0, help="sampling temperature (default: 0, greedy)"
    )
    parser.add_argument(
        "--top-p", type=_share, metavar="P", default=1.0, help="nucleus sampling (default: %(default)s, all tokens)"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="sampling seed (default: %(default)s)")


class Images(argparse.Action):
    """--images: folders and files, as a shell expands photos/*.jpg.

    One value is stored as text, several as a list.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings, nargs="+", metavar=("FOLDER", "FILE"))

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, values: Any, option: Any = None) -> None:
        setattr(options, self.dest, values[0] if len(values) == 1 else values)


class OneFolder(argparse.Action):
    """--images: the folder that image paths are relative to."""

    def __init__(self, **settings: Any):
        super().__init__(**settings, nargs="+", metavar="FOLDER")

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, values: Any, option: Any = None) -> None:
        if len(values) > 1:
            parser.error(
                f"{option} takes one folder, which the image paths in the file are relative to, but got {len(values):,}"
                f" values, {values[0]} to {values[-1]}: give the folder only"
            )
        setattr(options, self.dest, Path(values[0]))


def swallowed(options: argparse.Namespace, images: str, *names: str) -> None:
    """Give the arguments `names` back the values that --images swallowed.

    With nargs="+", --images (stored as `images`) also takes the positional arguments that follow it.
    """
    missing, taken = [name for name in names if getattr(options, name) is None], getattr(options, images)
    if missing and isinstance(taken, list) and len(taken) > len(missing):
        for name in reversed(missing):
            setattr(options, name, taken.pop())
        setattr(options, images, taken[0] if len(taken) == 1 else taken)


def _temperature(text: str) -> float:
    return _number(text, "0 or more", lambda number: 0 <= number < math.inf)


def _share(text: str) -> float:
    return _number(text, "above 0 and at most 1", lambda number: 0 < number <= 1)


def _number(text: str, range_text: str, allowed: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not allowed(number):
        raise argparse.ArgumentTypeError(f"expected a number, {range_text}, got {text!r}")
    return number


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
