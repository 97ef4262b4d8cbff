"""The user's own Python code, by file or name."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx_visalign.utils.errors import UserError, plainly


def find_function(name: str, what: str) -> Callable[..., Any]:
    """The function called FILE.py:FUNCTION or MODULE:FUNCTION.

    A module is an installed one, or one in the working folder. `what` names the function's purpose in errors. Raises
    `UserError` if the file or module cannot be imported or has no such function.
    """
    place, _, function = name.rpartition(":")
    module = import_file(Path(place)) if place.endswith(".py") else _import_module(place, name, what)
    found = vars(module).get(function)
    if not callable(found):
        raise UserError(
            f"{what} {name!r}: {place or 'nothing'} has no function {function!r}. Expected FILE.py:FUNCTION or MODULE:FUNCTION."
        )
    return found


def versioned(name: str | None) -> str:
    """A name of own code with its file's version.

    The name is as `find_function` takes it, or FILE.py alone; "" for None.
    """
    if name is None:
        return ""
    place = name if name.endswith(".py") else name.rpartition(":")[0]
    if place.endswith(".py"):
        return f"{name}, {version_of(place)}"
    spec = importlib.util.find_spec(place)
    return name if spec is None else f"{name}, {version_of(spec.origin)}"


def version_of(file: str | None) -> str:
    """A digest of a file, which stages depend on.

    Edited code counts as another, so that no result mixes both. A module without a file has none.
    """
    found = "" if file is None or not os.path.isfile(file) else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]
    return f"version {found or 'unknown'}"


def import_file(path: Path) -> ModuleType:
    """Import a Python file as a module, once per process."""
    path = path.absolute()
    name = f"mlx_visalign_own_{path.stem}_{abs(hash(path)):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"There is no Python file {path}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the module they are in
    try:
        run_own(str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except UserError:
        del sys.modules[name]
        raise
    return module


def run_own(what: str, work: Callable[[], Any]) -> Any:
    """Run foreign code, which may raise anything."""
    try:
        return work()
    except Exception as error:
        raise UserError(f"{what} cannot be imported ({type(error).__name__}: {plainly(error)}).") from error


def _import_module(module: str, name: str, what: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # a command's path begins where the command is
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:
        why = f"{type(error).__name__}: {plainly(error)}"
        raise UserError(f"{what} {name!r} cannot be imported ({why}). Expected FILE.py:FUNCTION or MODULE:FUNCTION.") from error
