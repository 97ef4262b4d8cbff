"""Strict parsing of JSON or YAML values into dataclasses.

Wrong names and types become a UserError that says what to change.
Supported field types: str, int, float, bool, Literal, `X | None`, `X | tuple[X, ...] | None`, tuple[X, ...], tuple[X, Y],
list[X], dict[str, X] and other dataclasses. Any other type is a bug and raises TypeError.
"""

import dataclasses
import difflib
import re
import reprlib
import sys
import types
import typing
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal, TypeVar

from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, collect, refuse

T = TypeVar("T")

# Old names of settings and their new ones, one in a section as "section.name". An old name is accepted until version 0.2,
# wherever the new one is a setting or its section is there.
RENAMED = {
    "beta": "kl_coef",  # PPO's; a pair loss has its beta
    "calibration_images": "judge.check_images",
    "checkpoint_layers": "grad_checkpoint",
    "count": "max_images",
    "clip": "cliprange",  # PPO's; elsewhere it is the folder of a CLIP
    "debias_images": "judge.debias_images",
    "grad_accumulation": "grad_accumulation_steps",
    "groups": "num_beam_groups",
    "inner_epochs": "num_ppo_epochs",
    "least_mentions": "min_mentions",
    "length_gap": "max_length_gap",
    "max_step_kl": "target_kl",
    "penalty": "diversity_penalty",
    "phrase": "judge.phrase",
    "rollout": "rollout_batch_size",
    "questions": "questions_per_image",
    "scenes": "eval_images",
    "sure_yes": "min_yes_margin",
    "value_clip": "cliprange_value",
    "value_weight": "vf_coef",
    "view": "clip_aspect",  # a CLIP's; SeVa has its view
    "warmup": "warmup_ratio",
}

SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST = 10**18  # smaller integers fit into 64 bits, for C, MLX and other JSON readers
MAX_LAYERS, MAX_SIZE = 1000, 1 << 24  # of a model
TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def build(cls: type[T], values: object, where: str) -> T:
    """Build the dataclass `cls` from a mapping of its fields.

    Fields with a default may be left out. `where` names the file (and line or section) in errors. Raises one UserError for
    all unknown names (with the nearest known one), missing fields, and values of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected named values, got {shown(values)}.")
    known: dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = with_new_names(values, known)
    faults = [f"{where}: {unknown(name, dotted(cls))}" for name in values if name not in known]
    missing = [name for name, field in known.items() if name not in values and _is_required(field)]
    faults += [f"{where}: the field '{name}' is missing." for name in missing]
    kinds, built = typing.get_type_hints(cls), {}
    for name in [name for name in known if name in values]:
        try:
            built[name] = convert(values[name], kinds[name], f"{where}: {name}")
        except UserError as error:
            faults += error.each
    refuse(faults)
    with within(where):
        return cls(**built)


def with_new_names(values: Mapping[Any, Any], known: Container[str]) -> dict[Any, Any]:
    """Rename old setting names, with one warning each.

    A name is changed only if its new name, or the section that it is in now, is `known` and the old one is not.
    """
    renamed: dict[Any, Any] = {}
    moved: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        new = name if name in known else RENAMED.get(name, name)
        section, _, inner = str(new).partition(".")
        if new == name or section not in known:
            renamed[name] = value
            continue
        _warn_renamed(name, new)
        if inner:
            moved.setdefault(section, {})[inner] = value
        else:
            renamed[new] = value
    for section, inside in moved.items():
        if isinstance(there := renamed.get(section, {}), Mapping):
            renamed[section] = inside | dict(there)
    return renamed


@cache
def _warn_renamed(old: str, new: str) -> None:
    say(f"The setting {old} is called {new} now. The old name will stop working in version 0.2.")


@contextmanager
def within(where: str) -> Iterator[None]:
    """Prefix errors raised in the block with `where`."""
    try:
        yield
    except UserError as error:
        refuse([f"{where}: {fault}" for fault in error.each])


def dotted(cls: Any) -> list[str]:
    """Field names of a dataclass, nested ones dotted ("train.beta")."""
    kinds = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    sections = [name for name in names if dataclasses.is_dataclass(kinds[name])]
    return names + [f"{section}.{name}" for section in sections for name in dotted(kinds[section])]


def unknown(name: object, known: Iterable[str]) -> str:
    """Error text for an unknown name, with a hint."""
    return f"unknown name '{name}'. {nearest(name, known)}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Hint: the nearest known name, or all of them.

    Known names may be dotted (see `dotted`): "beta" is near "train.beta". Case is ignored.
    """
    names = sorted(known, key=lambda known_name: (known_name.count("."), known_name))
    spellings: dict[str, str] = {}
    for known_name in names:
        for spelling in (known_name, known_name.rpartition(".")[2]):
            spellings.setdefault(spelling.lower(), known_name)
    spellings |= {old: spellings[new] for old, new in RENAMED.items() if new in spellings and old not in spellings}
    found = difflib.get_close_matches(str(name).lower(), spellings, n=1)
    return f"Did you mean '{spellings[found[0]]}'?" if found else f"Known names: {', '.join(names)}."


def require(settings: Any, **allowed: tuple[bool, str]) -> None:
    """UserError naming every setting that is out of range.

    `allowed` gives for each setting whether its value is valid, and the valid range as text: rank=(rank >= 1, "1 or more").
    """
    outside = {name: range_text for name, (valid, range_text) in allowed.items() if not valid}
    refuse([f"{name} is {shown(getattr(settings, name))}; it must be {range_text}." for name, range_text in outside.items()])


class _Shown(reprlib.Repr):
    """Values as JSON writes them (null, true); objects that JSON cannot hold by their type."""

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802, reprlib finds it by the type's name
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()

    def repr_float(self, value: float, level: int) -> str:
        return repr(value)

    def repr_tuple(self, value: tuple, level: int) -> str:
        return self.repr1(list(value), level)

    def repr_instance(self, value: object, level: int) -> str:
        return "a function" if callable(value) else f"an object of type {type(value).__name__}"


def shown(value: object) -> str:
    """Short form of a value for errors; strings are marked."""
    if value is None:
        return "nothing (null)"
    text = _Shown().repr(value)  # Repr looks at a few items only: YAML aliases may stand for billions
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {short}" if isinstance(value, str) else short


def convert(value: Any, kind: Any, where: str) -> Any:
    """Check and convert `value` to the type `kind`.

    Lists become tuples and integers floats where the type asks for it. Raises UserError, beginning with `where`, if the
    value is of another type, not finite, or not one of the choices.
    """
    if kind in TYPE_NAMES:
        return _scalar(value, kind, where)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    origin: Any = typing.get_origin(kind)
    parts = typing.get_args(kind)
    if origin is Literal:
        return _choice(value, parts, where)
    if origin in (typing.Union, types.UnionType) and parts[-1] is type(None):
        return None if value is None else convert(value, parts[len(parts) == 3 and isinstance(value, list | tuple)], where)
    if origin in (list, tuple):
        return _sequence(value, origin, parts, where)
    if origin is dict:
        return _mapping(value, parts[1], where)
    raise TypeError(f"{where}: fields of type {kind} are not supported")


def check_architecture(values: Mapping[str, object], where: str) -> None:
    """UserError for implausible model sizes.

    A damaged config must not use up all memory or run for ever.
    """
    for name, value in values.items():
        most = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE
        if (type(value) is int and not 1 <= value <= most) or (type(value) is float and value <= 0):
            raise UserError(f"{where}.{name} is {shown(value)}, which no model has.")


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _scalar(value: Any, kind: type, where: str) -> Any:
    # In Python True is an int; in a file it is a mistake.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number and abs(value) <= sys.float_info.max:  # false for NaN as well
        return float(value)
    if type(value) is not kind or kind is float:
        raise UserError(f"{where} must be {TYPE_NAMES[kind]}, got {shown(value)}.")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise UserError(f"{where} must be a whole number of fewer than 19 digits, got {shown(value)}.")
    if isinstance(value, str) and SURROGATE.search(value):
        raise UserError(f"{where} is broken text: it holds half of a two-part character (a lone surrogate).")
    return value


def _choice(value: Any, choices: tuple, where: str) -> Any:
    if value not in choices:
        raise UserError(f"{where} must be one of {', '.join(map(str, choices))}, got {shown(value)}.")
    return value


def _sequence(value: Any, origin: Any, parts: tuple, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} must be a list, got {shown(value)}.")
    if origin is list or parts[-1] is Ellipsis:
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        raise UserError(f"{where} must hold {len(parts)} values, got {len(value)}.")
    pairs = zip(value, parts, strict=True)
    return origin(collect(partial(convert, item, part, f"{where}[{index}]") for index, (item, part) in enumerate(pairs)))


def _mapping(value: Any, kind: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be named values, got {shown(value)}.")
    names = collect(partial(convert, name, str, where) for name in value)
    items = collect(partial(convert, item, kind, f"{where}: {name}") for name, item in value.items())
    return dict(zip(names, items, strict=True))
