"""Rewards of sentences, and the tree as a record.

Numbers and text only, no model. Higher rewards are better. With L a sentence's language score, I its image score and
a = `image_weight`:

    centred     a c(I) + (1 - a) c(L), c(x) = ((n + 1) / 2 - rank(x)) / n  ours: ranks 1 (best) to n among n different siblings
    calibrated  a tanh((I - threshold) / (2 width)) + (1 - a) L            ours: sentences that do not fit lower the reward
    rank        -(a rank(I) + (1 - a) rank(L)) / n                         CSR's code, among all n siblings
    paper       a max(I, 0) + (1 - a) L                                    CSR, arXiv 2405.14622, section 3.2 (there lambda = a)

An end token alone is a node too, which says nothing about the image. `centred` gives it 0, the reward of a middling sentence:
a sum then rises by going on only where the next sentence is better than its siblings. The other kinds rank it last for the
image, or give it an image term of 0; streams that stop are never penalised, so most siblings are such end tokens, and
chosen answers get long.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mlx_visalign.data.records import Record
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require

Fate = Literal["grown", "pruned", "final", "cut", "broken"]
"""final: the model ended the answer here. cut: the answer reached its length limit before the model ended it."""

AMONG_SIBLINGS = ("centred", "rank")  # kinds of reward that compare a sentence with its siblings, never complete answers


@dataclass(frozen=True)
class RewardSettings:
    """How sentences and complete answers are rewarded.

    kind            centred, calibrated, rank or paper, as in the formulas of this module
    image_weight    a, from 0 (only the model's confidence) to 1 (only how well the sentence fits the image)
    language        raw_mean: mean log-probability of its tokens, in nats; penalised_mean: minus the penalties of sampling;
                    product: the product of the probabilities
    over            an answer's reward is the mean or the sum of its sentences'; code: the sum over one more than there are
    threshold       calibrated: the image score at which a sentence is as likely to fit as not; none: the median of the scores
                    of sampled answers' sentences
    width           calibrated: the increase in image score that raises the odds of fitting by a factor e, above 0; none: half
                    their standard deviation
    repeat_penalty  subtracted from the reward of a sentence whose objects have all been named before in its answer
    """

    kind: Literal["centred", "calibrated", "rank", "paper"] = "centred"
    image_weight: float = 0.9
    language: Literal["raw_mean", "penalised_mean", "product"] = "raw_mean"
    over: Literal["mean", "sum", "code"] = "sum"
    threshold: float | None = None
    width: float | None = None
    repeat_penalty: float = 0.0

    def __post_init__(self) -> None:
        require(
            self,
            image_weight=(0 <= self.image_weight <= 1, "from 0 to 1"),
            width=(self.width is None or self.width > 0, "above 0"),
        )


@dataclass(frozen=True)
class Sentence:
    """A node of a tree.

    parent           index of the preceding sentence in the tree's list; -1 for a first one
    logp, penalised  summed over its tokens, in nats
    image            the judge's score of how well it fits the image; none for a broken sentence and for an end token alone
    reward, total    its own, and that of the answer up to here
    """

    parent: int
    stream: int
    text: str
    ids: tuple[int, ...]
    logp: float
    penalised: float
    fate: Fate
    image: float | None = None
    reward: float | None = None
    total: float | None = None


@dataclass(frozen=True)
class Tree(Record):
    """All sentences about one image, and its two answers.

    The best and the worst complete answer; none if no two differ.

    chosen, rejected            the indices of their last sentences
    chosen_text, rejected_text  the answers, decoded in one piece
    lengths                     their tokens, end token included
    reference_logps             their summed log-probabilities under the policy that made the tree
    tokens                      sampled for the whole tree
    """

    id: str
    image: str
    prompt: str
    tokens: int
    sentences: tuple[Sentence, ...]
    chosen: int | None = None
    rejected: int | None = None
    chosen_text: str = ""
    rejected_text: str = ""
    lengths: tuple[int, int] | None = None
    reference_logps: tuple[float, float] | None = None

    @classmethod
    def from_row(cls, row: object, where: str = "row") -> "Tree":
        tree = super().from_row(row, where)
        ends = [place for place in (tree.chosen, tree.rejected) if place is not None]
        if not all(0 <= place < len(tree.sentences) for place in ends):
            raise UserError(f"{where}: an answer ends in a sentence that does not exist: {ends} of {len(tree.sentences)}.")
        if any(sentence.parent >= place for place, sentence in enumerate(tree.sentences)):
            raise UserError(f"{where}: a sentence's parent must come before it in the list.")
        return tree

    def path(self, place: int | None) -> list[int]:
        """The indices of an answer's sentences, first to last."""
        return [] if place is None or place < 0 else [*self.path(self.sentences[place].parent), place]

    @property
    def depth(self) -> int:
        """The number of sentences on the longest path."""
        return max((len(self.path(place)) for place in range(len(self.sentences))), default=0)


def language_score(
    logps: Sequence[float], penalised: Sequence[float], kind: Literal["raw_mean", "penalised_mean", "product"]
) -> float:
    """L of a sentence, from its tokens' log-probabilities."""
    return math.exp(sum(logps)) if kind == "product" else fmean(logps if kind == "raw_mean" else penalised)


def sibling_rewards(
    texts: Sequence[str], language: Sequence[float], image: Sequence[float | None], settings: RewardSettings
) -> list[float]:
    """The rewards of one node's children.

    `image` is None for an end token alone.
    """
    if settings.kind == "centred":
        return _centred(texts, language, image, settings.image_weight)
    if settings.kind == "rank":
        fits = [-math.inf if score is None else score for score in image]
        language, fit = ([-rank / len(scores) for rank in ranks(scores)] for scores in (language, fits))
    else:
        fit = [0.0 if score is None else _fit(score, settings) for score in image]
    weight = settings.image_weight
    return [weight * i + (1 - weight) * sure for i, sure in zip(fit, language, strict=True)]


def _centred(texts: Sequence[str], language: Sequence[float], image: Sequence[float | None], weight: float) -> list[float]:
    """Centred ranks among the different spoken siblings; 0 for an end token alone."""
    scores = {text: (fit, sure) for text, fit, sure in zip(texts, image, language, strict=True) if fit is not None}
    parts = [centred_ranks([pair[side] for pair in scores.values()]) for side in (0, 1)]
    rewards = {text: weight * fit + (1 - weight) * sure for text, fit, sure in zip(scores, *parts, strict=True)}
    return [0.0 if fit is None else rewards[text] for text, fit in zip(texts, image, strict=True)]


def centred_ranks(scores: Sequence[float]) -> list[float]:
    """Ranks around the middle: (middle rank - rank) / n.

    From below 0.5 for the best to above -0.5. Ties share their mean rank.
    """
    above = [sum(other > score for other in scores) for score in scores]
    ties = [sum(other == score for other in scores) for score in scores]
    count = len(scores)
    return [((count + 1) / 2 - (more + (same + 1) / 2)) / count for more, same in zip(above, ties, strict=True)]


def _fit(score: float, settings: RewardSettings) -> float:
    """The image term of a sentence, for the kinds that do not rank."""
    if settings.kind == "paper":
        return max(score, 0.0)
    assert settings.threshold is not None and settings.width is not None  # CSR fills them in before it samples
    return math.tanh((score - settings.threshold) / (2 * settings.width))


def ranks(scores: Sequence[float]) -> list[int]:
    """1 for the highest score; ties go to the first."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [order.index(i) + 1 for i in range(len(scores))]


def answer_reward(rewards: Sequence[float], over: Literal["mean", "sum", "code"]) -> float:
    """An answer's reward, from at least one sentence's."""
    return sum(rewards) / {"mean": len(rewards), "sum": 1, "code": len(rewards) + 1}[over]


def survivors(scores: Sequence[float], enough: int, best: int, worst: int) -> list[int]:
    """The indices of the open nodes that keep growing.

    All if there are fewer than `enough`, else the `best` highest and the `worst` lowest scores.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return order if len(order) < enough else [*order[:best], *order[len(order) - worst :]]


BROKEN = re.compile(
    r"(?P<character>.)(?P=character){10}"  # one character 11 times
    r"|(?<!\S)(?P<word>\S+)(?:\s+(?P=word)){5}(?!\S)"  # one word 6 times
    r"|(?:&nbsp;\s*){2}"
    r"|(?:\n[^\n]*){6}"  # more than 5 newlines
    r"|[\u0400-\u052f\u1100-\u11ff\u3040-\u30ff\uac00-\ud7af\U0001f000-\U0001faff\ufffd]",  # other scripts, emoji, half a byte
    re.DOTALL,
)
SHORTEST = 4  # characters


def is_broken(text: str) -> bool:
    """Whether a sampled sentence is degenerate.

    It repeats itself, is shorter than four characters, or leaves the Latin script.
    """
    return len(text) < SHORTEST or BROKEN.search(text) is not None
