"""The command line: runs a command, returns its exit code."""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from mlx_visalign.cli.parser import COMMANDS, TO_BEGIN_WITH, build_parser
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, sentence
from mlx_visalign.utils.foreign_warnings import quiet_libraries
from mlx_visalign.utils.links import following_links
from mlx_visalign.utils.signals import exit_code, working


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0, 2 for a `UserError`, or 128 + signal (130: Ctrl-C) if the command was stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    if not arguments:
        print(build_parser(_version()).format_help() + TO_BEGIN_WITH, end="")
        return 0
    if arguments[:1] == ["convert"]:
        return COMMANDS["convert"].main(arguments[1:])
    options = build_parser(_version()).parse_args(arguments)
    options.again = shlex.join(["visalign", *arguments])
    try:
        with following_links(getattr(options, "follow_links", False)):
            return 0 if _do(options) else 2
    except (UserError, OSError) as error:
        say(f"visalign {options.command}: {sentence(error)}")
        return 2
    except KeyboardInterrupt as stop:
        return exit_code(stop)


def _do(options: Namespace) -> bool:
    """Run a command; False if the exit code should be 2. The result goes to stdout, as text or JSON; all else to stderr."""
    with working():
        result = COMMANDS[options.command].run(options)
        if options.json:
            print(json.dumps(result.data))
        else:
            result.show()
    return bool(result.ok)


def _version() -> str:
    try:
        return version("mlx-visalign")
    except PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"
