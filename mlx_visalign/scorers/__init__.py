"""What tells how well a text fits an image. A user's own function of this form may stand in for any of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

Score = Callable[[Sequence[Path], Sequence[str]], list[float]]
"""Images and texts, as many of each -> how well each text fits its image; higher is better."""
