"""The settings a file was made with stand beside it, so that it is never taken for the result of others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_visalign.errors import UserError

UNSET = "not set"


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they look after a trip through a JSON file (tuples are lists there)."""
    return json.loads(json.dumps(dict(settings)))


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its name ("reward.kind" within another), the saved value and the current one.

    None if all agree.
    """
    for name in [*current, *saved]:
        was, now = saved.get(name, UNSET), current.get(name, UNSET)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            inner = first_difference(was, now)
            if inner is not None:
                return f"{name}.{inner[0]}", *inner[1:]
        elif was != now:
            return name, was, now
    return None


def require_same(saved: Mapping[str, Any], current: Mapping[str, Any], file: Path) -> None:
    """UserError that names a setting in which `file`'s differ from the current ones, with both values."""
    difference = first_difference(saved, current)
    if difference is not None:
        name, was, now = difference
        raise UserError(
            f"The setting {name} is {now} now, but {file} was written with {was}. "
            f"Set {name} back to go on from there, or use another output folder."
        )
