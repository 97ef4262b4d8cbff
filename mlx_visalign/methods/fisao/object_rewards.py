"""Object rewards: the scores of named objects, as word rewards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_visalign.data.records import Prompt
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.methods.fisao.calibration import Calibration
from mlx_visalign.methods.fisao.token_mentions import Reader, TokenMention
from mlx_visalign.scorers import Score
from mlx_visalign.training.trajectory import Rewarded
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require


@dataclass(frozen=True)
class RewardSettings:
    """How a score becomes a reward.

    shape   affine or band, see `Calibration.reward`; oracle: 1 for a correct object and -1 for a hallucinated one, by labels
    margin  of the band, in units of the score; below 0 it narrows the dead zone
    praise  weight of positive rewards against negative ones; above 0
    repeat  upper bound on the reward of naming an object again in the same answer; at most 0
    """

    shape: Literal["affine", "band", "oracle"] = "affine"
    margin: float = 0.0
    praise: float = 1.0
    repeat: float = 0.0

    def __post_init__(self) -> None:
        require(self, praise=(self.praise > 0, "above 0"), repeat=(self.repeat <= 0, "0 or less"))


@dataclass(frozen=True)
class ObjectReward:
    """Rewards the objects that answers name.

    `truth` is used by the oracle alone.
    """

    reader: Reader
    score: Score
    locate: Callable[[str], Path]
    calibration: Calibration
    settings: RewardSettings
    truth: Annotations | None = None

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> list[tuple[Rewarded, ...]]:
        found = [self.reader.mentions(ids) for ids in answers]
        named = [(self.locate(prompt.image), m.canonical) for prompt, ms in zip(prompts, found, strict=True) for m in ms]
        scores = iter(self.score([image for image, _ in named], [name for _, name in named]) if named else [])
        return [self._rewarded(prompt.image, ms, scores) for prompt, ms in zip(prompts, found, strict=True)]

    def _rewarded(self, image: str, mentions: Sequence[TokenMention], scores: Iterator[float]) -> tuple[Rewarded, ...]:
        """Rewards of these mentions, which take the next of `scores`. Only an object's first mention may earn more than
        `repeat`.
        """
        rewarded: list[Rewarded] = []
        seen: set[str] = set()
        for mention in mentions:
            score = next(scores)
            reward = self._reward(image, mention.canonical, score)
            if mention.canonical in seen:
                reward = min(reward, self.settings.repeat)
            seen.add(mention.canonical)
            rewarded.append(Rewarded(mention.phrase, mention.start, mention.end, mention.first, mention.last, score, reward))
        return tuple(rewarded)

    def _reward(self, image: str, canonical: str, score: float) -> float:
        if self.settings.shape != "oracle":
            return self.of_score(score)
        if self.truth is None or image not in self.truth:
            raise UserError(f"The reward 'oracle' needs labels of every image, and {image} has none.")
        return self.settings.praise if canonical in self.truth[image] else -1.0

    def of_score(self, score: float) -> float:
        """The reward of a first mention with this score.

        0 for the oracle, which uses no scores.
        """
        if self.settings.shape == "oracle":
            return 0.0
        reward = self.calibration.reward(score, self.settings.shape, self.settings.margin)
        return reward * self.settings.praise if reward > 0 else reward
