"""The methods: those in this folder, installed ones, and files of one's own, all found by name.

A method is a module with `Settings` and either `train(job, settings)`, or `sample` and `pairs`, which
`preference_rounds` trains on. It may also have

    ranking(job, settings)   what rates answers for the best-of-n baseline; without it their mean log-probability does
    picture(job, settings)   draws what the method saw into the run's plots

The first line of its docstring describes it. An installed package offers methods as entry points of the group
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
NO_METHODS = ("__init__", "job", "method", "preference_rounds")

_from_files: dict[str, ModuleType] = {}


def names() -> list[str]:
    """The names of all methods there are."""
    return sorted({*_built_in(), *_installed(), *_from_files})


def descriptions() -> dict[str, str]:
    """Every method's name with the first line of its docstring.

    None is imported for it: of an installed one it is said which package it comes from.
    """
    found = {name: f"from the package {point.value.partition('.')[0]}" for name, point in _installed().items()}
    found |= {name: _first_line(module.__doc__) for name, module in _from_files.items()}
    found |= {name: _first_line(ast.get_docstring(ast.parse(read_text(path)))) for name, path in _built_in().items()}
    return {name: found[name] for name in names()}


def find(name: str) -> Any:
    """The `Method` called `name`.

    Raises `UserError` for a name that no method has, and for an installed module that is no method.
    """
    from mlx_visalign.methods.method import Method  # only now: it brings MLX along, which lists of methods do without

    return Method.of(name, _module(name))


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
    """Make a Python file a method, called as the file is.

    The file is run, and found by its name, which is returned, as long as this process lives. Raises `UserError` for a file
    that is missing, fails, lacks a part of the contract, or has a name that is taken.
    """
    path = Path(path)
    name = path.stem
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"A method's file is a Python file, and there is none at {path}.")
    if name in _built_in() or name in _installed():
        raise UserError(f"{path}: there is a method called {name} already. Give the file another name.")
    _from_files[name] = _checked(import_file(path), str(path))
    return name


def recipe_of(method: str) -> Path:
    """The recipe that comes with a method; for one without, the recipe with nothing but the method's own defaults."""
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
            f"{what} is no method: it lacks {', '.join(missing)}. A method has Settings, and either train or sample and pairs."
        )
    return module


def _first_line(docstring: str | None) -> str:
    return str(docstring or "").partition("\n")[0]
