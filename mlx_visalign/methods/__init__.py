"""Methods, found by name: built in, installed, or a file.

A method is a module with `Settings` and either `train(job, settings)`, or `sample` and `pairs`, which
`preference_rounds` trains on. Optional parts:

    ranking(job, settings)   scores answers for the best-of-n baseline; by default their mean log-probability
    picture(job, settings)   writes the method's own picture into the run's plots

The first line of its docstring is its description. An installed package offers methods as entry points of the group
`mlx_visalign.methods`, each naming a module. A method never imports another.
"""

import ast
import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx_visalign.runs.recipe import RECIPES
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.own_code import import_file, run_own
from mlx_visalign.utils.schema import nearest

GROUP = "mlx_visalign.methods"
FOLDER = Path(__file__).parent
NO_METHODS = ("__init__", "job", "judge", "method", "preference_rounds")

_from_files: dict[str, ModuleType] = {}


def names() -> list[str]:
    """The names of all known methods."""
    return sorted({*_built_in(), *_installed(), *_from_files})


def descriptions() -> dict[str, str]:
    """Every method's name with the first line of its docstring.

    No method is imported for this: an installed one is described by its package's name.
    """
    found = {name: f"from the package {point.value.partition('.')[0]}" for name, point in _installed().items()}
    found |= {name: _first_line(module.__doc__) for name, module in _from_files.items()}
    found |= {name: _first_line(ast.get_docstring(ast.parse(read_text(path)))) for name, path in _built_in().items()}
    return {name: found[name] for name in names()}


def find(name: str) -> Any:
    """The `Method` called `name`.

    Raises `UserError` for an unknown name, and for an installed module that is not a method.
    """
    from mlx_visalign.methods.method import Method  # imported late: it imports MLX, which listing methods does not need

    module = _module(name)
    return Method.of(name, _first_line(module.__doc__), module)


def _module(name: str) -> ModuleType:
    if name in _built_in():
        return importlib.import_module(f"{__name__}.{name}")
    if name in _from_files:
        return _from_files[name]
    if name in _installed():
        what = f"The installed method {name}"
        return _checked(run_own(what, _installed()[name].load), what)
    raise UserError(f"There is no method '{name}'. {nearest(name, names())}")


def add_file(path: str | Path) -> str:
    """Register a Python file as a method; returns its name.

    The file is imported. Its name without .py is the method's, until this process ends. Raises `UserError` for a file that
    is missing, fails, lacks a part of the contract, or has a name that is taken.
    """
    path = Path(path)
    name = path.stem
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"A method must be a Python file, and {path} is not one.")
    if name in _built_in() or name in _installed():
        raise UserError(f"{path}: a method named {name} exists already. Give the file another name.")
    _from_files[name] = _checked(import_file(path), str(path))
    return name


def recipe_of(method: str) -> Path:
    """The recipe that comes with a method.

    A method without one gets `own.yaml`, which leaves the method's own defaults as they are.
    """
    own = RECIPES / f"{method}.yaml"
    return own if own.is_file() or method not in names() else RECIPES / "own.yaml"


def _built_in() -> dict[str, Path]:
    files = {path.stem: path for path in FOLDER.glob("*.py") if path.stem not in NO_METHODS}
    return files | {path.parent.name: path for path in FOLDER.glob("*/__init__.py")}


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _checked(module: ModuleType, what: str) -> ModuleType:
    missing = [part for part in ("Settings",) if not hasattr(module, part)]
    missing += [part for part in ("sample", "pairs") if not (hasattr(module, part) or hasattr(module, "train"))]
    if missing:
        raise UserError(
            f"{what} is not a method: it lacks {', '.join(missing)}. A method needs Settings, and either train or both sample "
            "and pairs."
        )
    return module


def _first_line(docstring: str | None) -> str:
    return str(docstring or "").partition("\n")[0]
