"""What tells how well a text fits an image. A user's own function of this form may stand in for any of them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_visalign.errors import UserError
from mlx_visalign.fields import shown

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
