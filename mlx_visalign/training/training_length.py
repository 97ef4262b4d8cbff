"""Whether a training is long enough to change a model, said before it, at its start and in its report.

Rules of thumb, ours: below them nothing was ever seen to change, above them something may.
"""

from collections.abc import Sequence
from typing import Any

from mlx_visalign.training.config import LearningSettings, TrainSettings, schedule_factor
from mlx_visalign.utils.formatting import counted

UPDATES, PAIRS = 20, 50  # fewer teach next to nothing
LOOKED_AT = 10_000  # of more updates only so many, evenly apart
RATE = 0.1  # an update at a smaller share of the peak learning rate moves next to nothing


def foretell(loop: TrainSettings, pairs: int | None, *, at_most: bool = False) -> str | None:
    """Why a training will hardly change the model, and what helps; None where nothing speaks against it.

    pairs    that are trained on; None where a training takes none
    at_most  the counts are the most there can be
    """
    apart = 1 + loop.iters // LOOKED_AT
    moving = min(loop.iters, apart * sum(schedule_factor(loop, step) >= RATE for step in range(0, loop.iters, apart)))
    return _judge("will hardly change the model", loop.iters, moving, pairs, loop.grad_accumulation_steps, at_most)


def look_back(rows: Sequence[dict[str, Any]], settings: LearningSettings, pairs: int | None) -> str | None:
    """The same of a training that is over, by the rows of its metrics."""
    moving = sum(row["learning_rate"] >= RATE * settings.learning_rate for row in rows)
    verb = "can hardly have changed the model" if any(row["learning_rate"] for row in rows) else "has not changed the model"
    return _judge(verb, len(rows), moving, pairs, settings.grad_accumulation_steps)


def _judge(
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
        f"This training {verb}: {found}. {wanted} are the least that teaches anything, and some hundred are better. "
        f"What helps: more images, more epochs{less}."
    )
