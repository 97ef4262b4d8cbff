"""The `visalign convert NAME ...` command.

Also called as `visalign-convert NAME ...` and, in a checkout without installation, as `python -m convert NAME ...`.
"""

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_visalign.utils.arguments import link_option
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, sentence
from mlx_visalign.utils.flags import Parser
from mlx_visalign.utils.foreign_warnings import quiet_libraries
from mlx_visalign.utils.links import following_links
from mlx_visalign.utils.signals import exit_code, working

# Modules beside this one. Each has EXAMPLES, add_arguments(parser) and run(options), which returns the summary as a dict.
# Only the requested one is imported.
NAMES = ("llava", "llava_original", "clip", "export", "peft")
PROGRAM = "visalign convert"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a converter and return the exit code.

    0 is success, 2 a user error, 128 + signal an interruption (130: Ctrl-C).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    options = build_parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        with following_links(options.follow_links), working():
            figures = options.run(options)
    except (UserError, OSError) as error:
        say(f"{PROGRAM} {options.name}: {sentence(error)}")
        return 2
    except KeyboardInterrupt as stop:
        say("Stopped. Nothing unfinished is left behind.")
        return exit_code(stop)
    print(json.dumps(figures) if options.json else "\n".join(_lines(figures)))
    return 0


def build_parser(asked: str) -> argparse.ArgumentParser:
    """The parser of all converters.

    Only the converter named `asked` gets its options, since adding them imports its module.
    """
    parser = Parser(
        prog=PROGRAM,
        description="Convert models and adapters to MLX and back, one tensor at a time. The source is never modified.",
        epilog=f"examples:\n  {PROGRAM} llava --hf-path llava-1.5-7b-hf --mlx-path llava-mlx\n  {PROGRAM} NAME --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in NAMES:
        about = _first_line(name)
        command = names.add_parser(
            name, help=about, description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == asked:
            converter = importlib.import_module(f"mlx_visalign.convert.{name}")
            converter.add_arguments(command)
            command.epilog = "\n  ".join(("examples:", *(f"{PROGRAM} {name} {example}" for example in converter.EXAMPLES)))
            command.set_defaults(run=converter.run)
        link_option(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON; everything else goes to stderr")
    return parser


def _first_line(name: str) -> str:
    """The first docstring line of a converter, read without importing it."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(text))).split("\n")[0]


def _lines(figures: dict[str, Any]) -> list[str]:
    """One line per name and value; list items below each other."""
    rows = [(name, value if isinstance(value, list) else [value]) for name, value in figures.items()]
    return [f"{name if index == 0 else '':14} {item}" for name, items in rows for index, item in enumerate(items)]
