"""Object rewards: the scores of named objects, as word rewards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from mlx_visalign.data.object_vocabulary import question
from mlx_visalign.data.records import Prompt
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.evaluation.runner import split_prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.fisao.calibration import Calibration, Scored, believed
from mlx_visalign.methods.fisao.token_mentions import Reader, TokenMention
from mlx_visalign.scorers import Score
from mlx_visalign.training.trajectory import Rewarded
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require


@dataclass(frozen=True)
class RewardSettings:
    """How a score becomes a reward.

    shape   band or affine, see `Calibration.reward`; oracle: 1 for a correct object and -1 for a hallucinated one, by labels
    margin  of the band, in units of the score; below 0 it narrows the dead zone
    praise  weight of positive rewards against negative ones; above 0
    repeat  upper bound on the reward of naming an object again in the same answer; at most 0
    """

    shape: Literal["band", "affine", "oracle"] = "band"
    margin: float = 0.0
    praise: float = 1.0
    repeat: float = 0.0

    def __post_init__(self) -> None:
        require(self, praise=(self.praise > 0, "above 0"), repeat=(self.repeat <= 0, "0 or less"))


@dataclass(frozen=True)
class ObjectScorer:
    """Scores how well phrases fit images.

    name       identifies the scorer where settings are compared
    template   the text that is scored; {} is the phrase
    unrelated  images for debiasing: a phrase's mean score over them is subtracted from its score, because some words score
               higher than others on any image
    """

    name: str
    score: Score
    template: str
    unrelated: tuple[Path, ...] = ()

    def __call__(self, images: Sequence[Path], phrases: Sequence[str]) -> list[float]:
        """One score per (image, phrase)."""
        if not images:
            return []
        texts = [self.template.replace("{}", phrase) for phrase in phrases]
        return [score - self._level(text) for score, text in zip(self.score(images, texts), texts, strict=True)]

    def _level(self, text: str) -> float:
        if self.unrelated and text not in self._levels:
            self._levels[text] = fmean(self.score(self.unrelated, [text] * len(self.unrelated)))
        return self._levels.get(text, 0.0)

    @cached_property
    def _levels(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class ObjectReward:
    """Rewards the objects that answers name.

    `truth` is used by the oracle alone.
    """

    reader: Reader
    scorer: ObjectScorer
    locate: Callable[[str], Path]
    calibration: Calibration
    settings: RewardSettings
    truth: Annotations | None = None

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> list[tuple[Rewarded, ...]]:
        found = [self.reader.mentions(ids) for ids in answers]
        named = [(self.locate(prompt.image), m.phrase) for prompt, ms in zip(prompts, found, strict=True) for m in ms]
        scores = iter(self.scorer([image for image, _ in named], [phrase for _, phrase in named]))
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


def score_mentions(
    policy: Policy,
    prompts: Sequence[Prompt],
    locate: Callable[[str], Path],
    reader: Reader,
    scorer: ObjectScorer,
    truth: Annotations | None,
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """Rows of `calibration.Scored` for some prompts.

    Answer the prompts, score every object named, and label it: by `truth`, or else by the policy's own pseudo-labels.
    """
    paths = [locate(prompt.image) for prompt in prompts]
    prefix = policy.prefill(policy.image_features(paths), [policy.prompt_ids(prompt.prompt) for prompt in prompts])
    rows = []
    for prompt, path, answer in zip(prompts, paths, policy.generate(prefix, sampling), strict=True):
        mentions = reader.mentions(answer.ids)
        names = list(dict.fromkeys(mention.canonical for mention in mentions))
        correct: dict[str, bool | None] = (
            dict(zip(names, map(believed, yes_probabilities(policy, path, names)), strict=True))
            if truth is None
            else {name: name in truth[prompt.image] for name in names}
        )
        scores = scorer([path] * len(mentions), [mention.phrase for mention in mentions])
        rows += [
            Scored(prompt.id, prompt.image, mention.canonical, mention.phrase, score, correct[mention.canonical]).to_row()
            for mention, score in zip(mentions, scores, strict=True)
        ]
    return rows


def yes_probabilities(policy: Policy, image: Path, names: Sequence[str]) -> list[float]:
    """The policy's confidence that each object is in the image.

    p(yes) / (p(yes) + p(no)), for the first token of its answer.
    """
    if not names:
        return []
    asked = [split_prompt(policy, question(name)) for name in names]
    prefix = policy.prefill(policy.image_features([image]), [asked[0][0]])
    words = [policy.response_ids(word)[0] for word in ("Yes", "No")]
    rows = [[*after, word] for _, after in asked for word in words]
    logps = np.array(policy.read(prefix, [rows]).logps)
    yes, no = np.array([logps[i, len(row) - 1] for i, row in enumerate(rows)]).reshape(-1, 2).T
    return (1 / (1 + np.exp(no - yes))).tolist()
