"""What a method gets: a run's folder, the policy to train, prompts about unlabelled images, and a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_visalign.data.object_vocabulary import Vocabulary, coco80
from mlx_visalign.data.records import Pair, Prompt
from mlx_visalign.inference.logprobs import sum_logps
from mlx_visalign.inference.policy import Answer, Policy
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.preflight.workload import SCORING
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import Reward, Score
from mlx_visalign.training.dpo import with_reference
from mlx_visalign.training.losses import PairLoss

SCORED_TOGETHER = 16  # pairs


@dataclass(frozen=True)
class Job:
    """One alignment. Image paths in prompts, responses and pairs are absolute or relative to the run's folder."""

    run: Run
    policy: Policy
    prompts: list[Prompt]
    seed: int
    held_out: list[Prompt] = field(default_factory=list)  # about images that are not trained on
    on_metrics: Callable[[dict[str, Any]], None] | None = None
    vocabulary: Vocabulary = field(default_factory=coco80)  # the objects that answers may name
    score: Score | None = None  # for methods that reward what fits the image
    score_name: str = ""  # what stands for `score` where settings are compared: another name, another scorer
    reward: Reward | None = None  # for methods that rate whole answers by a reward of the user's own
    reward_name: str = ""
    blank: Path | None = None  # the image-blind control: what rollouts are learned from instead of the images they are about
    after_round: Callable[[], None] | None = None  # measures the policy as a round has left it

    def image(self, path: str) -> Path:
        return self.run.folder / path

    def prefill(self, prompts: Sequence[Prompt]) -> Prefix:
        """Read the prompts with their images, as they are: answers to each of them share what was read."""
        features = self.policy.image_features([self.image(prompt.image) for prompt in prompts])
        return self.policy.prefill(features, [self.policy.prompt_ids(prompt.prompt) for prompt in prompts])

    def located(self, pair: Pair) -> Pair:
        """The pair with its images' paths as they are from here."""
        return replace(pair, images=tuple(str(self.image(image)) for image in pair.images))

    def scored(
        self, pairs: Sequence[Pair], stage: str, loss: PairLoss, seed: int, batch: int = SCORED_TOGETHER, **depends: Any
    ) -> list[Pair]:
        """The pairs with the policy as it is now for their reference.

        A stage, done once. `seed` is that of the training that comes; `depends` says what the policy is besides `about`.
        """
        damaging = {"reads": loss.names, "seed": seed} if loss.needs_more else {}

        def score(some: Sequence[Pair]) -> list[dict[str, Any]]:
            seen = with_reference(self.policy, [self.located(pair) for pair in some], loss.reads, seed)
            return [replace(pair, reference_logps=now.reference_logps).to_row() for pair, now in zip(some, seen, strict=True)]

        settings = self.about() | damaging | depends
        return self.run.records(Pair, stage, pairs, score, settings=settings, batch=batch, title=SCORING)

    def about(self) -> dict[str, Any]:
        """What the model's answers depend on, whatever is asked of it."""
        policy = self.policy
        return {
            "base": policy.base,
            "template": policy.template,
            "aspect": policy.preprocessing.aspect,
            "dtype": policy.dtype,
        }


Rank = Callable[[Sequence[Prompt], Prefix, Sequence[Sequence[Answer]]], list[list[float]]]
"""Prompts, what was read of their images and words, and as many answers to each -> what every answer is worth."""


def rank_by_likelihood(job: Job, settings: Any) -> Rank:
    """Answers ranked by mean log-probability, in nats a token.

    For the best-of-n baseline of a method that has no reward of its own.
    """

    def rank(prompts: Sequence[Prompt], prefix: Prefix, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        reading = job.policy.read(prefix, [[answer.ids for answer in some] for some in answers])
        means = sum_logps(reading.logps, reading.mask) / reading.mask.sum(axis=1)
        return np.array(means).reshape(len(answers), -1).tolist()

    return rank
