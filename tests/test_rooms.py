"""Who may import whom, read off the syntax trees: a room imports itself and the rooms before it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlx_visalign"
ROOMS = """
    utils data models convert inference training scorers evaluation tiny_world preflight runs reporting methods pipeline cli
""".split()  # noqa: SIM905 (as one reads it)
# Siblings that never meet: methods, scorers and converters; these are what each kind shares.
APART = {
    "methods": {"job", "judge", "method", "preference_rounds"},
    "scorers": {"Score", "checked", "find_scorer"},
}
CONVERTERS = {"llava", "llava_original", "clip", "peft"}  # share tables and files, and never import each other
DOORS = {
    r"mlx_vlm\b": ("models/families/",),
    r"mlx\.optimizers\b": ("training/trainer.py",),
    r"importlib(\.import_module)?$": ("methods/__init__.py", "utils/own_code.py", "convert/cli.py", "models/families/"),
}
FILES = [path for folder in (PACKAGE, ROOT / "convert") for path in sorted(folder.rglob("*.py")) if path.name != "__main__.py"]


def name_of(path: Path) -> str:
    """A file's path within the house, where convert is a room like the others."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts if parts[0] == "convert" else parts[1:])


def imported(path: Path) -> set[str]:
    """The dotted names a file imports, anywhere in it; `from a import b` counts as a.b."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_rooms_before_it(path):
    room = name_of(path).split("/")[0]
    if room == "__init__.py":  # the public names, each loaded when it is first used
        return
    for name in sorted(imported(path)):
        other = name.split(".")[1] if name.startswith("mlx_visalign.") else room
        assert ROOMS.index(other) <= ROOMS.index(room), f"{room} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_siblings_do_not_meet(path):
    room, *rest = name_of(path).split("/")
    for name in sorted(imported(path)):
        found = re.match(r"mlx_visalign\.(methods|scorers)\.(\w+)", name)
        if found and found[1] == room:
            assert found[2] in APART[room] or rest[0] in (found[2], f"{found[2]}.py"), f"{name_of(path)} may not import {name}"
    if room == "convert" and path.stem in CONVERTERS:
        assert not [name for name in imported(path) if re.match(rf"mlx_visalign\.convert\.({'|'.join(CONVERTERS)})\b", name)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_some_libraries_have_one_door(path):
    for name in imported(path):
        for library, doors in DOORS.items():
            assert name_of(path).startswith(doors) or not re.match(library, name), f"only {' '.join(doors)} may import {name}"


def test_every_module_lies_in_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(ROOMS)


def test_every_folder_of_modules_is_packaged():
    """An installed package has the folders named here, and no others; an editable one has all, so it would not show."""
    packaging = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {name: Path(packaging["package-dir"].get(name, name.replace(".", "/"))) for name in packaging["packages"]}
    places |= {name: Path("convert", *name.split(".")[2:]) for name in places if name.startswith("mlx_visalign.convert.")}
    folders = {path.parent for top in ("mlx_visalign", "convert", "recipes") for path in (ROOT / top).rglob("__init__.py")}
    assert sorted(places.values()) == sorted(folder.relative_to(ROOT) for folder in folders)


def test_contributing_names_every_room():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    assert [room for room in ROOMS if not re.search(rf"^\| `{room}/?` \|", table, re.M)] == []
