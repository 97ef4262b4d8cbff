"""Compares saved settings with current ones.

Every result has its settings saved beside it, so that it is never reused for other settings.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import with_new_names

UNSET = "not set"
DIGESTS = {
    "base": "the model's weights",
    "adapter": "the weights of the adapter it starts from",
    "items": "its input rows",
    "image_contents": "the images",
    "prompts": "the prompts",
    "questions": "the questions",
    "vocabulary": "the objects of the vocabulary",
    "judge": "the weights of the CLIP scorer",  # the key in saved files
    "scorer": "the weights of the CLIP scorer",
    "pairs": "the pairs",
    "blank": "the pixels of the blank image",
}
"""Settings whose values are fingerprints, and what they identify."""


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings after a JSON round trip (tuples become lists)."""
    return json.loads(json.dumps(dict(settings)))


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """First differing setting: (name, saved value, current value).

    Nested names are dotted, as in "reward.kind". None if all agree.
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
    """UserError naming the first setting that differs from `file`'s."""
    difference = first_difference(saved, current)
    if difference is not None:
        name, was, now = difference
        if name in DIGESTS:
            raise UserError(
                f"{file} was written with different inputs{_counts(was, now)}: {DIGESTS[name]} have changed since. "
                "Restore them to resume, or use another output folder."
            )
        raise UserError(
            f"The setting {name} is {_shown(now)} now, but {file} was written with {_shown(was)}. "
            f"Set {name} back to resume, or use another output folder."
        )


def why(difference: tuple[str, Any, Any]) -> str:
    """Phrase for a difference, to go before "in FILE"."""
    name, was, now = difference
    return f"{DIGESTS[name]} are not those" if name in DIGESTS else f"{name} is {_shown(now)} here and {_shown(was)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _counts(was: Any, now: Any) -> str:
    """The text " (3 then, 4 now)" where two fingerprints ("3 of digest ...") differ in their counts, else ""."""
    counts = [str(value).partition(" of digest ") for value in (was, now)]
    if not all(separator for _, separator, _ in counts) or counts[0][0] == counts[1][0]:
        return ""
    return f" ({counts[0][0]} then, {counts[1][0]} now)"
