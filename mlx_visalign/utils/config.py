"""Recipes: YAML settings with presets and command-line overrides.

Files are read with a safe loader, which builds no Python objects.

    method: seva
    preset: laptop                      # the default preset
    presets:
      laptop: {train: {learning_rate: 1e-5}}
      paper: {train: {learning_rate: 2e-6}}
    train: {warmup_ratio: 0.03}

Precedence: command line > recipe > preset > the defaults of the settings' dataclass. Names and types are checked when
the merged values become that dataclass (`mlx_visalign.utils.schema.build`).
"""

import re
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mlx_visalign.utils.errors import UserError, plainly, refuse
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.schema import shown, unknown, with_new_names

T = TypeVar("T")

# PyYAML follows YAML 1.1, where a float needs a dot and its exponent a sign: it reads 1e-7 as text.
FLOAT = re.compile(r"^[-+]?([0-9]+\.?[0-9]*[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?)$")


class _Loader(yaml.SafeLoader):
    """Builds plain values only, never objects. A duplicate name is an error; PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise yaml.constructor.ConstructorError(
                    problem=f"'{name}' is given twice", problem_mark=node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the text "1e-7", so that our loader reads it back as text."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def load_recipe(path: Path, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merged values of preset, recipe file and overrides.

    `preset` names a block of the file's `presets`; the default is the file's own `preset`, if it has one.
    `overrides` come from the command line: dotted names ("train.iters") with their values; None means null.
    Raises UserError if the file is not a recipe or lacks the preset.
    """
    recipe = _read_yaml(path)
    presets, default = recipe.pop("presets", {}), recipe.pop("preset", None)
    layers = [_preset(presets, preset or default, str(path)), recipe, *map(_nested, (overrides or {}).items())]
    return reduce(_merge, layers, {})


def with_overrides(
    make: Callable[[dict[str, Any]], T],
    path: Path,
    preset: str | None,
    overrides: Mapping[str, Any],
    called: Callable[[str], str],
) -> T:
    """Call `make` on a recipe's values, attributing errors to overrides.

    `make` begins its errors with the file name. Where an error comes from an override, it is reworded to name that override
    instead; `called` maps an override's dotted name to what the user typed.
    """
    try:
        return make(load_recipe(path, preset, overrides))
    except UserError as error:
        without = {name: _faults_without(make, path, preset, overrides, name) for name in overrides}
        refuse(
            [
                _attributed(fault, [n for n in overrides if _is_named(n, fault) and fault not in without[n]], path, called)
                for fault in error.each
            ]
        )
        raise


def _attributed(fault: str, blamed: list[str], path: Path, called: Callable[[str], str]) -> str:
    """The fault with the blamed overrides named in place of the file."""
    if not blamed:
        return fault
    fault = fault.removeprefix(f"{path}: ")
    for section in blamed[0].split(".")[:-1]:
        fault = fault.removeprefix(f"{section}: ")
    last = blamed[0].rpartition(".")[2]
    own = len(blamed) == 1 and re.match(rf"{re.escape(last)}(?= is | must |: )", fault)
    return called(blamed[0]) + fault.removeprefix(last) if own else f"{', '.join(map(called, blamed))}: {fault}"


def _is_named(name: str, fault: str) -> bool:
    """Whether a fault mentions an override, by the last part of its name."""
    return re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", fault) is not None


def _faults_without(
    make: Callable[[dict[str, Any]], T], path: Path, preset: str | None, overrides: Mapping[str, Any], name: str
) -> tuple[str, ...]:
    """The faults that remain without one of the overrides."""
    try:
        make(load_recipe(path, preset, {one: value for one, value in overrides.items() if one != name}))
    except UserError as error:
        return error.each
    return ()


def dotted_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {"train": {"iters": 5}} to {"train.iters": 5}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted_values(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def dump(values: Mapping[str, Any]) -> str:
    """YAML that `load_recipe` reads back unchanged.

    Tuples become lists; the order is kept.
    """
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        values = yaml.load(text, _Loader)
    except Exception as error:  # a tag on a value of the wrong type makes PyYAML raise any exception
        why = str(error) if isinstance(error, yaml.YAMLError) else plainly(error)
        raise UserError(f"{path} is not a valid YAML file: {why}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe consists of named values, got {shown(values)}.")
    return values


def _preset(presets: object, name: object, where: str) -> dict[str, Any]:
    if name is None:
        return {}
    if not isinstance(presets, dict) or name not in presets:
        raise UserError(f"{where}: presets: {unknown(name, presets if isinstance(presets, dict) else ())}")
    if not isinstance(presets[name], dict):
        raise UserError(f"{where}: the preset '{name}' must consist of named values, got {shown(presets[name])}.")
    return presets[name]


def _nested(override: tuple[str, Any]) -> dict[str, Any]:
    """{"train": {"iters": 5}} for ("train.iters", 5)."""
    name, value = override
    return reduce(lambda inner, part: {part: inner}, reversed(name.split(".")), value)


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` updated with `high`; sections are merged, not replaced.

    A setting's old and new names refer to the same setting.
    """
    low, high = with_new_names(low, high), with_new_names(high, low)
    merged = dict(low)
    for name, value in high.items():
        both = isinstance(low.get(name), dict) and isinstance(value, dict)
        merged[name] = _merge(low[name], value) if both else value
    return merged
