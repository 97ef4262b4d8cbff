"""What a method is given: run, policy, prompts and seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from mlx_visalign.data.object_vocabulary import Vocabulary, coco80
from mlx_visalign.data.questions import spread_descriptions
from mlx_visalign.data.records import Pair, Prompt
from mlx_visalign.inference.logprobs import sum_logps
from mlx_visalign.inference.policy import Answer, Policy
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.preflight.workload import SCORING, Answering
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import Reward, Score
from mlx_visalign.training.dpo import with_reference
from mlx_visalign.training.length_guard import LengthGuard, measurements
from mlx_visalign.training.losses import PairLoss
from mlx_visalign.utils.files import replacing

SCORED_TOGETHER = 16  # pairs
WATCHED, WATCHED_TOGETHER = 16, 4  # descriptions whose length a training watches; beside AdamW's moments there is less room


@dataclass(frozen=True)
class Job:
    """One alignment.

    Image paths in prompts, responses and pairs are absolute or relative to the run's folder.
    """

    run: Run
    policy: Policy
    prompts: list[Prompt]
    seed: int
    held_out: list[Prompt] = field(default_factory=list)  # about images that are not trained on
    on_metrics: Callable[[dict[str, Any]], None] | None = None
    vocabulary: Vocabulary = field(default_factory=coco80)  # the objects that answers may name
    score: Score | None = None  # for methods that reward what fits the image
    score_name: str = ""  # identifies `score` where settings are compared
    judge: Any = None  # a `judge.Judge`, once a method has made it of CLIP or `score`
    reward: Reward | None = None  # for methods that rate complete answers by a reward of your own
    reward_name: str = ""
    method_code: str = ""  # identifies the code of a user's own method where settings are compared
    blank: Path | None = None  # the image-blind control: rollouts are trained on this image instead of their own
    after_round: Callable[[], None] | None = None  # called after each round, to measure the policy

    def image(self, path: str) -> Path:
        return self.run.folder / path

    def draw_blank(self, path: Path) -> None:
        """Write a blank image, which the tower sees as 0."""
        preprocessing = self.policy.preprocessing
        with replacing(path, durable=False) as file:
            Image.new("RGB", (preprocessing.size, preprocessing.size), preprocessing.background).save(file, "PNG")

    def prefill(self, prompts: Sequence[Prompt]) -> Prefix:
        """The prompts with their clean images, prefilled once."""
        features = self.policy.image_features([self.image(prompt.image) for prompt in prompts])
        return self.policy.prefill(features, [self.policy.prompt_ids(prompt.prompt) for prompt in prompts])

    def length_guard(self, settings: Any, updates: int) -> LengthGuard | None:
        """The length guard of a training, or None.

        None if no prompt asks for a description; `updates` is the number of the training's.
        """
        asked = spread_descriptions(self.prompts, WATCHED)

        def mean_tokens() -> float:
            batches = [asked[at : at + WATCHED_TOGETHER] for at in range(0, len(asked), WATCHED_TOGETHER)]
            answers = [self.policy.generate(self.prefill(some), Sampling(settings.max_tokens)) for some in batches]
            return fmean(len(answer.ids) for some in answers for answer in some)

        return LengthGuard(self.policy, mean_tokens, updates, settings.train.min_share, self.run.folder) if asked else None

    def located(self, pair: Pair) -> Pair:
        """The pair with its image paths resolved."""
        return replace(pair, images=tuple(str(self.image(image)) for image in pair.images))

    def scored(
        self, pairs: Sequence[Pair], stage: str, loss: PairLoss, seed: int, batch: int = SCORED_TOGETHER, **depends: Any
    ) -> list[Pair]:
        """The pairs with the current policy's log-probabilities as reference.

        A stage of the run, computed once. `seed` is that of the training to come; `depends` is what the policy depends on
        besides `about`.
        """
        damaging = {"reads": loss.names, "seed": seed} if loss.needs_more else {}

        def score(some: Sequence[Pair]) -> list[dict[str, Any]]:
            seen = with_reference(self.policy, [self.located(pair) for pair in some], loss.reads, seed)
            return [replace(pair, reference_logps=now.reference_logps).to_row() for pair, now in zip(some, seen, strict=True)]

        settings = self.about() | damaging | depends
        return self.run.records(Pair, stage, pairs, score, settings=settings, batch=batch, title=SCORING)

    def about(self) -> dict[str, Any]:
        """What every answer depends on, a method's own code included."""
        policy = self.policy
        own = {"method_code": self.method_code} if self.method_code else {}
        return {
            "base": policy.base,
            "template": policy.template,
            "aspect": policy.preprocessing.aspect,
            "dtype": policy.dtype,
            **own,
        }


def watching(settings: Any, prompts: Sequence[Prompt], rounds: int) -> tuple[Answering, ...]:
    """The work of the length guard, over all rounds."""
    asked = len(spread_descriptions(prompts, WATCHED))
    count = asked * rounds * measurements(settings.train.loop(len(settings.prompts_used(prompts))).iters)
    longest = settings.max_tokens
    return (Answering("watching lengths", count, count * longest, WATCHED_TOGETHER, longest, adapters=3),) if asked else ()


Rank = Callable[[Sequence[Prompt], Prefix, Sequence[Sequence[Answer]]], list[list[float]]]
"""(prompts, their prefix, n answers to each) -> a score for every answer."""


def rank_by_likelihood(job: Job, settings: Any) -> Rank:
    """Scores answers by mean log-probability, in nats per token.

    For the best-of-n baseline of a method that has no reward of its own.
    """

    def rank(prompts: Sequence[Prompt], prefix: Prefix, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        reading = job.policy.read(prefix, [[answer.ids for answer in some] for some in answers])
        means = sum_logps(reading.logps, reading.mask) / reading.mask.sum(axis=1)
        return np.array(means).reshape(len(answers), -1).tolist()

    return rank
