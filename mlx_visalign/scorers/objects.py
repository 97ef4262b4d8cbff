"""Scores of named objects, and of sentences naming them.

An object scorer has the form `scorers.Score`; its texts are the names of objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.scorers import Score


@dataclass(frozen=True)
class PhraseScorer:
    """Scores a phrase that contains the object's name.

    template   the text that is scored; {} is the object
    unrelated  images for word debiasing: a phrase's mean score over them is subtracted from its score, because some words
               score higher than others on any image
    """

    score: Score
    template: str
    unrelated: tuple[Path, ...] = ()

    def __call__(self, images: Sequence[Path], objects: Sequence[str]) -> list[float]:
        """One score per (image, object)."""
        texts = [self.template.replace("{}", name) for name in objects]
        return [score - self._level(text) for score, text in zip(self.score(images, texts), texts, strict=True)]

    def _level(self, text: str) -> float:
        if self.unrelated and text not in self._levels:
            self._levels[text] = fmean(self.score(self.unrelated, [text] * len(self.unrelated)))
        return self._levels.get(text, 0.0)

    @cached_property
    def _levels(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Part:
    """A scorer with its scale.

    mean, std  of its scores, by which they are standardised
    weight     in a `Combined` score, above 0
    """

    score: Score
    mean: float
    std: float
    weight: float = 1.0

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        """(score - mean) / std, per image and text."""
        return [(score - self.mean) / self.std for score in self.score(images, texts)]


@dataclass(frozen=True)
class Combined:
    """The weighted mean of several standardised scores.

        sum of weight (score - mean) / std, over the sum of the weights

    Judges that err independently are better together than the best of them alone.
    """

    parts: tuple[Part, ...]

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        total = sum(part.weight for part in self.parts)
        weights = [part.weight / total for part in self.parts]
        columns = [part(images, texts) for part in self.parts]
        return [sum(weight * score for weight, score in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class SentenceScorer:
    """Scores a sentence by the objects it names.

    Its score is (1 - w) times the mean over the distinct objects that it names, plus w times that of the whole sentence,
    with w = `whole_weight`. A sentence that names no object of the vocabulary has the score of the whole sentence.

    objects  scores objects
    whole    scores whole sentences, on the same scale
    """

    objects: Score
    whole: Score
    vocabulary: Vocabulary
    whole_weight: float = 0.0

    def __call__(self, images: Sequence[Path], sentences: Sequence[str]) -> list[float]:
        """One score per (image, sentence)."""
        named = [list(dict.fromkeys(m.canonical for m in self.vocabulary.mentions(text))) for text in sentences]
        asked = [(image, name) for image, names in zip(images, named, strict=True) for name in names]
        scores = iter(self.objects([image for image, _ in asked], [name for _, name in asked]) if asked else [])
        means = [fmean(next(scores) for _ in names) if names else None for names in named]
        weights = [self.whole_weight if names else 1.0 for names in named]
        needed = [row for row, weight in enumerate(weights) if weight > 0]
        whole = self.whole([images[row] for row in needed], [sentences[row] for row in needed]) if needed else []
        wholes = dict(zip(needed, whole, strict=True))
        return [
            weight * wholes.get(row, 0.0) + (1 - weight) * (mean or 0.0)
            for row, (weight, mean) in enumerate(zip(weights, means, strict=True))
        ]
