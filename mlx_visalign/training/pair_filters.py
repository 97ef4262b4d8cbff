"""Pair filters, and a warning if few images gave pairs."""

from collections.abc import Sequence
from typing import TypeVar

from mlx_visalign.data.records import Pair, Prompt
from mlx_visalign.utils.console import say
from mlx_visalign.utils.formatting import counted

T = TypeVar("T")

FEW = 0.2  # of the images


def even_lengths(gaps: Sequence[int], largest: float) -> list[int]:
    """Indices of pairs with a small mean length gap.

    `gaps` are the chosen answer's tokens minus the rejected one's. While their mean is more than `largest` away from 0, the
    pair with the largest gap in that direction is dropped. Summed log-probabilities depend on length, so a gap teaches the
    model to say more or less, whatever the image shows. Indices are in ascending order.
    """
    kept = sorted(range(len(gaps)), key=lambda i: gaps[i])
    total = sum(gaps)
    while kept and abs(total) > largest * len(kept):
        total -= gaps[kept.pop(-1 if total > 0 else 0)]
    return sorted(kept)


def balance_lengths(items: Sequence[T], gaps: Sequence[int], largest: float | None) -> list[T]:
    """The items that `even_lengths` keeps; all if `largest` is None."""
    return list(items) if largest is None else [items[index] for index in even_lengths(gaps, largest)]


def warn_if_few(pairs: Sequence[Pair], prompts: Sequence[Prompt], cure: str) -> None:
    """Warn if only few of the images gave pairs.

    `cure` is the method's advice on how to get more.
    """
    asked, paired = {prompt.image for prompt in prompts}, {image for pair in pairs for image in pair.images}
    if len(paired) < FEW * len(asked):
        say(
            f"warning: only {len(paired)} of {counted(len(asked), 'image')} gave a pair ({counted(len(pairs), 'pair')} in "
            f"total), which is little to learn from. {cure}"
        )
