"""Own reward: best over worst sampled answer, by your reward.

Sample several answers to every prompt, rate them with any function of images, prompts and answers (`--reward-file`), take
the best and the worst as a pair, train DPO; repeat with the new model where `rounds` asks for it. These are the pairs of
iterative DPO (as in self-rewarding language models, arXiv 2401.10020), with whatever reward there is.

Answers that were cut off are no candidates: trained, they would get an end token where the model did not stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from mlx_visalign.data.records import Pair, Prompt, Response
from mlx_visalign.inference.policy import Answer
from mlx_visalign.inference.prefix_cache import Prefix
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.job import SCORED_TOGETHER, Job, Rank
from mlx_visalign.methods.preference_rounds import PairSettings, RoundSettings
from mlx_visalign.preflight.workload import Answering, Workload, reference_scoring
from mlx_visalign.scorers import Reward
from mlx_visalign.training.pair_filters import balance_lengths
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import key_for


@dataclass(frozen=True)
class Settings(RoundSettings, PairSettings):
    """Settings, besides those of pair methods and of rounds.

    samples         answers to every prompt, at least 2
    temperature     of sampling, above 0
    top_p           nucleus of sampling, above 0 to 1
    margin          pairs whose rewards differ by no more are left out, 0 and up
    max_length_gap  pairs are left out until chosen and rejected answers differ by at most this many tokens on average;
                    none: all stay
    """

    samples: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    margin: float = 0.0
    max_length_gap: float | None = None

    NEEDS_REWARD: ClassVar[bool] = True

    def __post_init__(self) -> None:
        PairSettings.__post_init__(self)
        RoundSettings.__post_init__(self)
        require(
            self,
            samples=(self.samples >= 2, "2 or more"),
            temperature=(self.temperature > 0, "above 0"),
            margin=(self.margin >= 0, "0 or more"),
            max_length_gap=(self.max_length_gap is None or self.max_length_gap >= 0, "0 or more, or null"),
        )
        _ = self.sampling  # its range is checked now

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_tokens, self.temperature, self.top_p)

    def workload(self, prompts: Sequence[Prompt]) -> Workload:
        """Sampling, the reference's scores and DPO, in rounds.

        All samples of a prompt are drawn together; the best and the worst are read once more.
        """
        count = self.rounds * len(prompts)
        sampled = count * self.samples * self.max_tokens
        answering = Answering("answering", count, sampled, self.batch, self.max_tokens, streams=self.samples, drawn=True)
        scoring = reference_scoring(self.train.loss, count, SCORED_TOGETHER, self.max_tokens)
        return Workload((answering, scoring), self.prompts_trained(len(prompts)), rounds=self.rounds)


@dataclass(frozen=True)
class RatedResponse(Response):
    """An answer with its reward."""

    reward: float = 0.0


ROWS = ("responses", RatedResponse)
PAIR_SETTINGS = ("margin", "max_length_gap")
ADVICE = "More samples (--set samples=...), longer answers (--max-tokens), a smaller margin and more images leave more."


def sample(job: Job, settings: Settings, prompts: Sequence[Prompt], number: int) -> list[RatedResponse]:
    """`samples` rated answers to every prompt."""
    asked = [prompt for prompt in prompts for _ in range(settings.samples)]
    keys = [key_for(job.seed, prompt.id, number, n) for prompt in prompts for n in range(settings.samples)]
    answers = job.policy.generate(job.prefill(prompts), settings.sampling, keys, settings.samples)
    return [
        RatedResponse(**vars(prompt), view="clean", text=one.text, finished=one.finished, tokens=len(one.ids), reward=reward)
        for prompt, one, reward in zip(asked, answers, _rewards(job, asked, answers), strict=True)
    ]


def pairs(responses: Sequence[RatedResponse], settings: Settings, seed: int) -> list[Pair]:
    """The best complete answer to a prompt over the worst.

    Only where their rewards differ by more than the margin.
    """
    made, gaps = [], []
    for _, some in groupby(responses, key=lambda response: response.id):
        rated = sorted((one for one in some if one.finished), key=lambda one: -one.reward)
        if not rated or rated[0].text == rated[-1].text or rated[0].reward - rated[-1].reward <= settings.margin:
            continue
        best, worst = rated[0], rated[-1]
        gaps.append(best.tokens - worst.tokens)
        made.append(
            Pair(
                id=best.id,
                images=(best.image,),
                prompt=best.prompt,
                chosen=best.text,
                rejected=worst.text,
                chosen_score=best.reward,
                rejected_score=worst.reward,
            )
        )
    return balance_lengths(made, gaps, settings.max_length_gap)


def summary(responses: Sequence[RatedResponse], made: Sequence[Pair]) -> str:
    """Counts of prompts with a pair and of cut answers."""
    cut = sum(not response.finished for response in responses)
    prompts = counted(len({response.id for response in responses}), "prompt")
    return f"{prompts} gave {counted(len(made), 'pair')} ({cut} of {counted(len(responses), 'answer')} cut off)."


def depends_on(job: Job, settings: Settings) -> dict[str, str]:
    """The reward's name."""
    return {"reward": job.reward_name}


def ranking(job: Job, settings: Settings) -> Rank:
    """Answers ranked by the reward."""

    def rank(prompts: Sequence[Prompt], prefix: Prefix, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        return [_rewards(job, [prompt] * len(some), some) for prompt, some in zip(prompts, answers, strict=True)]

    return rank


def _rewards(job: Job, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
    images = [job.image(prompt.image) for prompt in prompts]
    return _reward_of(job)(images, [prompt.prompt for prompt in prompts], [answer.text for answer in answers])


def _reward_of(job: Job) -> Reward:
    if job.reward is None:
        raise UserError("own_reward needs a reward of your own: --reward-file FILE.py, with a function `reward` in it.")
    return job.reward
