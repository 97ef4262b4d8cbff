"""The command line: `visalign`, `mlx_visalign` and `python -m mlx_visalign`. What a command does stands in `commands`."""

import ast
import importlib
import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from mlx_visalign.errors import UserError, sentence
from mlx_visalign.fields import nearest
from mlx_visalign.links import following_links
from mlx_visalign.options import TO_BEGIN_WITH, build_parser
from mlx_visalign.progress import say
from mlx_visalign.quiet import quiet_libraries
from mlx_visalign.recipe import list_recipes
from mlx_visalign.records import read_text
from mlx_visalign.scorers import Score, checked
from mlx_visalign.stopping import exit_code, working

METHODS = Path(__file__).parent / "methods"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for a user's mistake, 128 + signal (130: Ctrl-C) if it was stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    if not arguments:
        print(build_parser(_version()).format_help() + TO_BEGIN_WITH, end="")
        return 0
    if arguments[:1] == ["convert"]:
        from mlx_visalign.convert.cli import main as convert

        return convert(arguments[1:])
    options = build_parser(_version()).parse_args(arguments)
    options.again = shlex.join(["visalign", *arguments])
    options.find_method = find_method
    options.find_scorer = find_scorer
    try:
        with following_links(getattr(options, "follow_links", False)):
            return 0 if _do(options) else 2
    except (UserError, OSError) as error:
        say(f"visalign {options.command}: {sentence(error)}")
        return 2
    except KeyboardInterrupt as stop:
        return exit_code(stop)


def find_method(name: str) -> ModuleType:
    """The module of the method called `name`."""
    if name not in list_methods():
        raise UserError(f"There is no method '{name}'. {nearest(name, list_methods())}")
    return importlib.import_module(f"mlx_visalign.methods.{name}")


def find_scorer(name: str) -> Score:
    """The function called "module:function", of an installed module or one in the working folder, its answers checked."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # a command's path begins where the command is
        sys.path.append(os.getcwd())
    try:
        found = vars(importlib.import_module(module)).get(function)
    except Exception as error:  # a user's file is run, so anything may come of it
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"The scorer {name!r} cannot be imported ({why}). Expected MODULE:FUNCTION.") from error
    if not callable(found):
        raise UserError(f"The module {module} has no function {function!r} to score with. Expected MODULE:FUNCTION.")
    return checked(found, name)


def list_methods() -> dict[str, str]:
    """The methods, and what each says of itself in its first line. Reads their files without running them."""
    files = [path for path in sorted(METHODS.glob("*.py")) if not path.stem.startswith("_")]
    return {path.stem: str(ast.get_docstring(ast.parse(read_text(path)))).split("\n")[0] for path in files}


def _do(options: Namespace) -> bool:
    """Do what is asked; is it well? The result goes to stdout, as JSON or for people to read; all else goes to stderr."""
    if options.command in ("methods", "recipes"):
        listed = list_methods() if options.command == "methods" else list_recipes()
        print(json.dumps(listed) if options.json else "\n".join(f"{name:12} {line}" for name, line in listed.items()))
        return True
    from mlx_visalign.commands import COMMANDS  # only now, for it takes seconds

    with working():
        result = COMMANDS[options.command](options)
        if options.json:
            print(json.dumps(result.data))
        else:
            result.show()
    return result.well


def _version() -> str:
    try:
        return version("mlx-visalign")
    except PackageNotFoundError:  # a bare checkout is not installed
        return "(not installed)"
