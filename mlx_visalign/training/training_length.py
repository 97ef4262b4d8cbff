"""Warnings about trainings too short to change a model.

They appear in the dry run, at the start and in the report. The limits are our rules of thumb: below them we never saw a
change, above them there may be one.
"""

from collections.abc import Sequence
from typing import Any

from mlx_visalign.training.config import LearningSettings, TrainSettings, schedule_factor
from mlx_visalign.utils.formatting import counted

UPDATES, PAIRS = 20, 50  # fewer have almost no effect
LOOKED_AT = 10_000  # of more updates, about this many are looked at, evenly spaced
RATE = 0.1  # updates below this share of the peak learning rate have almost no effect


def short_training_warning(loop: TrainSettings, pairs: int | None, *, at_most: bool = False) -> str | None:
    """Why a training is too short, or None.

    pairs    the number of pairs it trains on; None if it uses none
    at_most  the counts are upper bounds
    """
    apart = 1 + loop.iters // LOOKED_AT
    moving = min(loop.iters, apart * sum(schedule_factor(loop, step) >= RATE for step in range(0, loop.iters, apart)))
    return _warning("will hardly change the model", loop.iters, moving, pairs, loop.grad_accumulation_steps, at_most)


def look_back(rows: Sequence[dict[str, Any]], settings: LearningSettings, pairs: int | None) -> str | None:
    """The same for a finished training, from its metrics."""
    moving = sum(row["learning_rate"] >= RATE * settings.learning_rate for row in rows)
    verb = "can hardly have changed the model" if any(row["learning_rate"] for row in rows) else "has not changed the model"
    return _warning(verb, len(rows), moving, pairs, settings.grad_accumulation_steps)


def _warning(
    verb: str, updates: int, moving: int, pairs: int | None, grad_accumulation_steps: int, at_most: bool = False
) -> str | None:
    few_pairs = pairs is not None and pairs < PAIRS
    if moving >= UPDATES and 2 * moving >= updates and not few_pairs:
        return None
    found = f"{'at most ' * at_most}{counted(updates, 'update')}"
    if moving < updates:
        found += f", {moving or 'none'} of them at a tenth or more of the learning rate"
    if pairs is not None:
        found += f", from {'at most ' * at_most}{counted(pairs, 'pair')}"
    less = f", or a smaller grad_accumulation_steps ({grad_accumulation_steps} now)" if grad_accumulation_steps > 1 else ""
    wanted = f"{UPDATES} updates" + (f" and {PAIRS} pairs" if pairs is not None else "")
    return (
        f"This training {verb}: {found}. It needs at least {wanted}, better some hundreds. Try more images, more epochs{less}."
    )
