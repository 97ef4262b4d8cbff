"""The methods, one file or folder each, found by name and never importing each other."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.schema import nearest

METHODS = Path(__file__).parent
NO_METHODS = ("__init__", "job")


def find_method(name: str) -> ModuleType:
    """The module of the method called `name`."""
    if name not in list_methods():
        raise UserError(f"There is no method '{name}'. {nearest(name, list_methods())}")
    return importlib.import_module(f"mlx_visalign.methods.{name}")


def list_methods() -> dict[str, str]:
    """The methods, and what each says of itself in its first line. Reads their files without running them."""
    files = {path.stem: path for path in METHODS.glob("*.py") if path.stem not in NO_METHODS}
    files |= {path.parent.name: path for path in METHODS.glob("*/__init__.py")}
    return {name: str(ast.get_docstring(ast.parse(read_text(files[name])))).split("\n")[0] for name in sorted(files)}
