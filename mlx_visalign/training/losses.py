"""Preference losses, and the log-probabilities each one needs.

Pure functions of arrays, each with its formula and source. With d = log pi(answer) - log ref(answer), in nats and summed
over an answer's tokens, an answer's reward is beta d, and a pair's margin is the chosen answer's reward minus the rejected
one's. At the start policy and reference are the same, so all rewards are 0.
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
    """A log-probability's name, such as chosen or corrupted_chosen."""
    variant, side = read
    return side if variant == "clean" else f"{variant}_{side}"


@dataclass(frozen=True)
class Scored:
    """Scores of b pairs, the input of a loss.

    rewards    beta d of every answer that the loss reads, by name
    lengths    tokens of the chosen and the rejected answers, end tokens included
    smoothing  in [0, 0.5): the probability that a preference is flipped
    """

    rewards: Mapping[str, Float[mx.array, "b"]]
    lengths: Float[mx.array, "b 2"]
    smoothing: Float[mx.array, "b"]

    @property
    def margin(self) -> Float[mx.array, "b"]:
        return self.rewards["chosen"] - self.rewards["rejected"]


@dataclass(frozen=True)
class PairLoss:
    """A preference loss and its requirements.

    values  the loss of each pair; never negative, except for `robust`
    start   its value before the first update, the same for every pair
    reads   the answers whose log-probabilities it needs, each with a variant of the image
    """

    values: Callable[[Scored], Float[mx.array, "b"]]
    start: float = LN2
    reads: tuple[Read, ...] = PAIR

    @property
    def names(self) -> list[str]:
        return [name_of(read) for read in self.reads]

    @property
    def prefills(self) -> int:
        """Prefills per prompt: one per variant of the image."""
        return len({variant for variant, _ in self.reads})

    @property
    def needs_more(self) -> bool:
        """Whether pairs lack reference log-probabilities for it.

        The stages that make pairs score only the chosen and the rejected answer about the clean image.
        """
        return self.reads != PAIR


def pair_loss(loss_type: LossType, beta: float, noise: float = 0.0) -> PairLoss:
    """The loss of that name, as in TRL except `mdpo`."""
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

    with e = `label_smoothing` in [0, 0.5), the probability that a preference is flipped (one number for all pairs, or one
    per pair).

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences", equation 3 (conservative DPO).
    """
    # nn.log_sigmoid is stable: -logaddexp(0, -x).
    return -(1 - label_smoothing) * nn.log_sigmoid(margin) - label_smoothing * nn.log_sigmoid(-margin)


def hinge_loss(margin: Float[mx.array, "b"]) -> Float[mx.array, "b"]:
    """Hinge loss on the margin, as in SLiC.

        max(0, 1 - margin)

    Source: Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), in the form of Liu et al. 2024 (RSO, arXiv 2309.06657).
    """
    return nn.relu(1 - margin)


def robust_loss(margin: Float[mx.array, "b"], noise: float) -> Float[mx.array, "b"]:
    """Robust DPO (rDPO): unbiased under flipped preferences.

        (-(1 - e) log sigmoid(margin) + e log sigmoid(-margin)) / (1 - 2 e)

    with e = `noise` in [0, 0.5), the rate of flipped preferences. Its expectation over flips is the DPO loss on the true
    preferences. It has no lower bound.

    Source: Chowdhury et al. 2024 (arXiv 2403.00409).
    """
    return (-(1 - noise) * nn.log_sigmoid(margin) + noise * nn.log_sigmoid(-margin)) / (1 - 2 * noise)


def ipo_loss(difference: Float[mx.array, "b"], beta: float) -> Float[mx.array, "b"]:
    """Identity preference optimisation (IPO), averaged over tokens.

        (difference - 1 / (2 beta)) ** 2

    where `difference` is d of the chosen minus d of the rejected answer, each divided by the answer's number of tokens.

    Source: Azar et al. 2023 (arXiv 2310.12036), equation 17, whose tau is beta; averaged as in TRL, on the authors' advice.
    """
    return mx.square(difference - 1 / (2 * beta))


def mdpo_loss(
    chosen: Float[mx.array, "b"], rejected: Float[mx.array, "b"], corrupted: Float[mx.array, "b"]
) -> Float[mx.array, "b"]:
    """Multimodal DPO (mDPO), which also compares images.

        -log sigmoid(chosen - rejected) - log sigmoid(chosen - corrupted) - log sigmoid(chosen)

    of rewards; `corrupted` is the reward of the chosen answer about a damaged image. The last term, the anchor, pushes the
    chosen answer's reward above 0.

    Source: Wang et al. 2024 (arXiv 2406.11839), and `dpo_loss` in mdpo_trainer.py of luka-group/mDPO.
    """
    return -nn.log_sigmoid(chosen - rejected) - nn.log_sigmoid(chosen - corrupted) - nn.log_sigmoid(chosen)


def reward_metrics(pairs: Scored) -> dict[str, Float[mx.array, ""]]:
    """Mean rewards, `margin` and `accuracy` over the pairs.

    `accuracy`, in [0, 1], is the share of pairs whose chosen answer has the higher reward (a tie does not count).
    """
    metrics = {f"{name}_reward": reward for name, reward in pairs.rewards.items()}
    metrics |= {"margin": pairs.margin, "accuracy": (pairs.margin > 0).astype(mx.float32)}
    return {name: value.mean() for name, value in metrics.items()}
