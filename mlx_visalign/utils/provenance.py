"""The settings a file was made with stand beside it, so that it is never taken for the result of others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import with_new_names

UNSET = "not set"
DIGESTS = {
    "base": "the model's weights",
    "adapter": "the weights of the adapter that it goes on from",
    "items": "the rows that it is made of",
    "image_contents": "the images",
    "prompts": "the prompts",
    "questions": "the questions",
    "vocabulary": "the objects that may be named",
    "judge": "the weights of the CLIP that judges",
    "scorer": "the weights of the CLIP that judges",
    "pairs": "the pairs",
    "blank": "the pixels of the blank image",
}
"""Settings whose values are fingerprints, and what they are of."""


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they look after a trip through a JSON file (tuples are lists there)."""
    return json.loads(json.dumps(dict(settings)))


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its name ("reward.kind" within another), the saved value and the current one.

    None if all agree.
    """
    saved = with_new_names(saved, current)
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
        if name in DIGESTS:
            raise UserError(
                f"{file} was written with others{_counts(was, now)}: {DIGESTS[name]} have changed since. "
                "Bring those back to go on from there, or use another output folder."
            )
        raise UserError(
            f"The setting {name} is {_shown(now)} now, but {file} was written with {_shown(was)}. "
            f"Set {name} back to go on from there, or use another output folder."
        )


def why(difference: tuple[str, Any, Any]) -> str:
    """A difference in a few words."""
    name, was, now = difference
    return f"{DIGESTS[name]} are others" if name in DIGESTS else f"{name} is {_shown(now)} here and {_shown(was)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _counts(was: Any, now: Any) -> str:
    """How many there were and are, where fingerprints say so ("45 of digest ...") and it differs."""
    counts = [str(value).partition(" of digest ") for value in (was, now)]
    if not all(separator for _, separator, _ in counts) or counts[0][0] == counts[1][0]:
        return ""
    return f", {counts[0][0]} then and {counts[1][0]} now"
