"""Scorers and rewards: numbers for texts about images.

Users may supply their own functions of these forms.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.own_code import find_function
from mlx_visalign.utils.schema import shown

Score = Callable[[Sequence[Path], Sequence[str]], list[float]]
"""Images and texts of equal number -> how well each text fits its image; higher is better."""

Reward = Callable[[Sequence[Path], Sequence[str], Sequence[str]], list[float]]
"""Images, prompts and answers of equal number -> the reward of each answer; higher is better."""


def checked(score: Score, name: str) -> Score:
    """Wrap a user's scorer to validate its scores.

    It is never called for an empty list. Raises `UserError` unless it returns a finite number for every text.
    """

    def scored(images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        whose = f"The scorer {name!r}"
        return _numbers(_called(lambda: score(images, texts), whose), len(texts), "text", whose) if texts else []

    return scored


def checked_reward(reward: Reward, name: str) -> Reward:
    """Wrap a user's reward as `checked` does a scorer."""

    def rewarded(images: Sequence[Path], prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        whose = f"The reward {name!r}"
        given = _called(lambda: reward(images, prompts, answers), whose) if answers else []
        return _numbers(given, len(answers), "answer", whose)

    return rewarded


def find_scorer(name: str) -> Score:
    """The scorer called FILE.py:FUNCTION or MODULE:FUNCTION, with checks."""
    return checked(find_function(name, "The scorer"), name)


def find_reward(name: str) -> Reward:
    """The reward called FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION, with checks.

    In FILE.py alone the function `reward` is meant.
    """
    return checked_reward(find_function(f"{name}:reward" if name.endswith(".py") else name, "The reward"), name)


def _called(work: Callable[[], Any], whose: str) -> Any:
    """What the user's function returns; what it raises becomes a `UserError` with its place."""
    try:
        return work()
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {plainly(error)}"
        raise UserError(f"{whose} failed in {place.filename}, line {place.lineno} ({why}).") from error


def _numbers(given: Any, count: int, what: str, whose: str) -> list[float]:
    try:
        numbers = [float(number) for number in given]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        wanted = f"{count} finite numbers, one for each {what}"
        raise UserError(f"{whose} should return {wanted}; it returned {shown(given)}.")
    return numbers
