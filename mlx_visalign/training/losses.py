"""Preference losses, and what each of them reads.

Pure functions of arrays, each with its formula and source. With d = log pi(answer) - log ref(answer), in nats and summed
over an answer's tokens, an answer's reward is beta d, and the margin of a pair is the chosen answer's reward minus the
rejected one's. Policy and reference are one at the start, so there all rewards are 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

LossType = Literal["sigmoid", "ipo", "hinge", "robust", "mdpo"]
Variant = Literal["clean", "corrupted"]
Side = Literal["chosen", "rejected"]
Read = tuple[Variant, Side]

PAIR: tuple[Read, ...] = (("clean", "chosen"), ("clean", "rejected"))
LN2 = math.log(2)


def name_of(read: Read) -> str:
    """The name of a log-probability: chosen, rejected, corrupted_chosen."""
    variant, side = read
    return side if variant == "clean" else f"{variant}_{side}"


@dataclass(frozen=True)
class Scored:
    """b pairs as a loss sees them.

    rewards    beta d of every answer that the loss reads, by its name
    lengths    tokens of the chosen and the rejected answers, end tokens included
    smoothing  in [0, 0.5): the probability that a preference is the wrong way round
    """

    rewards: Mapping[str, Float[mx.array, "b"]]
    lengths: Float[mx.array, "b 2"]
    smoothing: Float[mx.array, "b"]

    @property
    def margin(self) -> Float[mx.array, "b"]:
        return self.rewards["chosen"] - self.rewards["rejected"]


@dataclass(frozen=True)
class PairLoss:
    """A preference loss, and what it asks of a training.

    values  the loss of each pair, 0 and up but for `robust`
    start   its value at the start, whatever the pair
    reads   the answers whose log-probabilities it needs, each with the variant of the image that it is about
    """

    values: Callable[[Scored], Float[mx.array, "b"]]
    start: float = LN2
    reads: tuple[Read, ...] = PAIR

    @property
    def names(self) -> list[str]:
        return [name_of(read) for read in self.reads]

    @property
    def prefills(self) -> int:
        """How often a prompt is read: once with each variant of its image."""
        return len({variant for variant, _ in self.reads})

    @property
    def needs_more(self) -> bool:
        """Whether it needs more references than a pair brings from the stage that made it."""
        return self.reads != PAIR


def pair_loss(loss_type: LossType, beta: float, noise: float = 0.0) -> PairLoss:
    """The loss of that name, which is TRL's but for `mdpo`."""
    losses = {
        "sigmoid": PairLoss(lambda pairs: sigmoid_loss(pairs.margin, pairs.smoothing)),
        "ipo": PairLoss(partial(_ipo, beta), start=1 / (2 * beta) ** 2),
        "hinge": PairLoss(lambda pairs: hinge_loss(pairs.margin), start=1.0),
        "robust": PairLoss(lambda pairs: robust_loss(pairs.margin, noise)),
        "mdpo": PairLoss(_mdpo, start=3 * LN2, reads=(*PAIR, ("corrupted", "chosen"))),
    }
    return losses[loss_type]


def _ipo(beta: float, pairs: Scored) -> Float[mx.array, "b"]:
    chosen, rejected = (pairs.rewards[side] / beta / pairs.lengths[:, i] for i, side in enumerate(("chosen", "rejected")))
    return ipo_loss(chosen - rejected, beta)


def _mdpo(pairs: Scored) -> Float[mx.array, "b"]:
    return mdpo_loss(pairs.rewards["chosen"], pairs.rewards["rejected"], pairs.rewards["corrupted_chosen"])


def sigmoid_loss(margin: Float[mx.array, "b"], label_smoothing: float | Float[mx.array, "b"] = 0.0) -> Float[mx.array, "b"]:
    """Direct preference optimisation (DPO), and its conservative form.

        -(1 - e) log sigmoid(margin) - e log sigmoid(-margin)

    with e = `label_smoothing` in [0, 0.5), the probability that a preference is the wrong way round (one for all pairs
    or one each).

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences", equation 3 (conservative DPO).
    """
    # nn.log_sigmoid is stable: -logaddexp(0, -x).
    return -(1 - label_smoothing) * nn.log_sigmoid(margin) - label_smoothing * nn.log_sigmoid(-margin)


def hinge_loss(margin: Float[mx.array, "b"]) -> Float[mx.array, "b"]:
    """A hinge on the margin, as in SLiC.

        max(0, 1 - margin)

    Source: Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), in the form of Liu et al. 2024 (RSO, arXiv 2309.06657).
    """
    return nn.relu(1 - margin)


def robust_loss(margin: Float[mx.array, "b"], noise: float) -> Float[mx.array, "b"]:
    """Robust DPO (rDPO): unbiased where preferences are flipped.

        (-(1 - e) log sigmoid(margin) + e log sigmoid(-margin)) / (1 - 2 e)

    with e = `noise` in [0, 0.5), the rate of flipped preferences. Its mean over flips is DPO's loss of the true preferences.
    It has no lower bound.

    Source: Chowdhury et al. 2024 (arXiv 2403.00409).
    """
    return (-(1 - noise) * nn.log_sigmoid(margin) + noise * nn.log_sigmoid(-margin)) / (1 - 2 * noise)


def ipo_loss(difference: Float[mx.array, "b"], beta: float) -> Float[mx.array, "b"]:
    """Identity preference optimisation (IPO), by token.

        (difference - 1 / (2 beta)) ** 2

    where `difference` is d of the chosen minus d of the rejected answer, each divided by the answer's number of tokens.

    Source: Azar et al. 2023 (arXiv 2310.12036), equation 17, whose tau is beta; by token as in TRL, after its authors.
    """
    return mx.square(difference - 1 / (2 * beta))


def mdpo_loss(
    chosen: Float[mx.array, "b"], rejected: Float[mx.array, "b"], corrupted: Float[mx.array, "b"]
) -> Float[mx.array, "b"]:
    """Multimodal DPO (mDPO): also the image decides.

        -log sigmoid(chosen - rejected) - log sigmoid(chosen - corrupted) - log sigmoid(chosen)

    of rewards; `corrupted` is that of the chosen answer about a damaged image. The last term, the anchor, holds the chosen
    answer's reward above 0.

    Source: Wang et al. 2024 (arXiv 2406.11839), and `dpo_loss` in mdpo_trainer.py of luka-group/mDPO.
    """
    return -nn.log_sigmoid(chosen - rejected) - nn.log_sigmoid(chosen - corrupted) - nn.log_sigmoid(chosen)


def reward_metrics(pairs: Scored) -> dict[str, Float[mx.array, ""]]:
    """Means over the pairs: rewards, `margin`, `accuracy`.

    `accuracy` is the share of pairs whose chosen reward is the higher (a tie is not), in [0, 1].
    """
    metrics = {f"{name}_reward": reward for name, reward in pairs.rewards.items()}
    metrics |= {"margin": pairs.margin, "accuracy": (pairs.margin > 0).astype(mx.float32)}
    return {name: value.mean() for name, value in metrics.items()}
