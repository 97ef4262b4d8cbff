"""What tells how well a text fits an image. A user's own function of this form may stand in for any of them."""

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import shown

Score = Callable[[Sequence[Path], Sequence[str]], list[float]]
"""Images and texts, as many of each -> how well each text fits its image; higher is better."""


def checked(score: Score, name: str) -> Score:
    """A user's own function, never asked about nothing; UserError unless it returns a finite number for every text."""

    def scored(images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        if not texts:
            return []
        given = score(images, texts)
        try:
            scores = [float(number) for number in given]
        except (TypeError, ValueError):
            scores = []
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            wanted = f"{len(texts)} finite numbers, one for each text"
            raise UserError(f"The scorer {name!r} should return {wanted}; it returned {shown(given)}.")
        return scores

    return scored


def find_scorer(name: str) -> Score:
    """The function called "module:function", of an installed module or one in the working folder, its answers checked."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # a command's path begins where the command is
        sys.path.append(os.getcwd())
    try:
        found = vars(importlib.import_module(module)).get(function)
    except Exception as error:  # a user's file is run, so anything may come of it
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"The scorer {name!r} cannot be imported ({why}). Expected MODULE:FUNCTION.") from error
    if not callable(found):
        raise UserError(f"The module {module} has no function {function!r} to score with. Expected MODULE:FUNCTION.")
    return checked(found, name)
