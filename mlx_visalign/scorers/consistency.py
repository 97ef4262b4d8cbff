"""How often sampled answers name an object, as a scorer.

A model that sees an object names it again and again; what it makes up changes from sample to sample (the idea of
SelfCheckGPT, Manakul et al. 2023, arXiv 2303.08896).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from mlx_visalign.data.object_vocabulary import Vocabulary

Shares = Mapping[str, float]
"""Canonical name of an object -> the share of an image's sampled answers that name it, from 0 to 1."""


class Consistency:
    """Scores objects by how many sampled answers name them."""

    def __init__(self, known: Mapping[Path, Shares], draw: Callable[[Path], Shares], vocabulary: Vocabulary):
        """`known` images have their shares; `draw` samples answers about any other."""
        self._known, self._draw, self._vocabulary = known, cache(draw), vocabulary

    def __call__(self, images: Sequence[Path], objects: Sequence[str]) -> list[float]:
        """One share per (image, object), from 0 to 1."""
        return [self.shares(image).get(self._canonical(name), 0.0) for image, name in zip(images, objects, strict=True)]

    def shares(self, image: Path) -> Shares:
        """The shares of objects named about an image."""
        found = self._known.get(image)
        return self._draw(image) if found is None else found

    def _canonical(self, name: str) -> str:
        return next((mention.canonical for mention in self._vocabulary.mentions(name)), name)


def shares_of(answers: Sequence[str], vocabulary: Vocabulary) -> dict[str, float]:
    """The share of answers that name each object."""
    counts = Counter(name for text in answers for name in dict.fromkeys(m.canonical for m in vocabulary.mentions(text)))
    return {name: count / len(answers) for name, count in counts.items()}
