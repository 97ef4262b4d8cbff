"""PPO trajectories: sampled answers with rewards, log-probabilities and advantages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from mlx_visalign.data.records import Record
from mlx_visalign.training import ppo_losses as ppo
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.utils.errors import UserError


@dataclass(frozen=True)
class Rewarded:
    """A rewarded span of an answer.

    Characters from `start` to `end`, tokens from `first` to `last`.
    """

    phrase: str
    start: int
    end: int
    first: int
    last: int
    score: float
    reward: float


@dataclass(frozen=True)
class Rollout(Record):
    """One sampled answer to the prompt `id`.

    Columns have one number per token; `values` has one more, for after the last token.

    blind_logps  in the image-blind control: log-probabilities given a blank image, to which ratios refer because the control
                 trains on the blank image; the KL still refers to the real image
    """

    id: str
    text: str
    finished: bool
    tokens: tuple[int, ...]
    rewarded: tuple[Rewarded, ...]
    logps: tuple[float, ...]
    reference_logps: tuple[float, ...]
    values: tuple[float, ...]
    advantages: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    blind_logps: tuple[float, ...] = ()

    @classmethod
    def from_row(cls, row: object, where: str = "row") -> "Rollout":
        rollout = super().from_row(row, where)
        count = len(rollout.tokens)
        columns = (rollout.logps, rollout.reference_logps, rollout.advantages, rollout.returns, rollout.values[1:])
        blind = (rollout.blind_logps,) if rollout.blind_logps else ()
        if count == 0 or any(len(column) != count for column in columns + blind):
            raise UserError(f"{where}: expected one number for each of the {count} tokens, and one more in values.")
        return rollout

    @property
    def token_rewards(self) -> np.ndarray:
        rewards = np.zeros(len(self.tokens), dtype=np.float32)
        for part in self.rewarded:
            rewards[part.last] += part.reward
        return rewards


def weighed(rows: Sequence[Rollout], settings: PPOSettings) -> list[Rollout]:
    """A rollout's answers with returns and whitened advantages.

    Advantages are whitened over all tokens of the rollout.
    """
    mask = padded([(True,) * len(row.tokens) for row in rows]).astype(bool)
    rewards, logps, reference = (
        padded(column).astype(np.float64)
        for column in zip(*((row.token_rewards, row.logps, row.reference_logps) for row in rows), strict=True)
    )
    values = padded([row.values for row in rows]).astype(np.float64)
    rewards = ppo.with_kl(rewards, logps, reference, settings.kl_coef)
    advantages = ppo.advantages(rewards, values, mask, settings.gamma, settings.lam)
    returns, whitened = advantages + values[:, :-1], ppo.whiten(advantages, mask)
    return [
        replace(row, advantages=numbers(whitened[i], len(row.tokens)), returns=numbers(returns[i], len(row.tokens)))
        for i, row in enumerate(rows)
    ]


def figures(rows: Sequence[Rollout]) -> dict[str, float]:
    """Mean statistics of a rollout.

    Per answer: `reward`, `kl` to the reference (nats), `length` (tokens), `mentions`. `rewarded` is the share of mentions
    whose reward is not 0.
    """
    mentions = [part for row in rows for part in row.rewarded]
    return {
        "reward": fmean(float(row.token_rewards.sum()) for row in rows),
        "kl": fmean(sum(row.logps) - sum(row.reference_logps) for row in rows),
        "length": fmean(len(row.tokens) for row in rows),
        "mentions": len(mentions) / len(rows),
        "rewarded": sum(part.reward != 0 for part in mentions) / max(1, len(mentions)),
    }


def numbers(row: Any, count: int) -> tuple[float, ...]:
    """The first `count` numbers in shortest lossless float32 notation."""
    return tuple(float(str(number)) for number in np.array(row, dtype=np.float32)[:count])


def padded(rows: Sequence[Any]) -> np.ndarray:
    """Rows right-padded with zeros to one array."""
    array = np.zeros((len(rows), max(map(len, rows))), dtype=np.float32)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array
