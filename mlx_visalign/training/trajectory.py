"""What a policy's answer taught: the answer, the words that were rewarded, and the numbers its updates need."""

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
    """Words of an answer and what they earn: the characters from start to end, the tokens from first to last."""

    phrase: str
    start: int
    end: int
    first: int
    last: int
    score: float
    reward: float


@dataclass(frozen=True)
class Rollout(Record):
    """One sampled answer to the prompt `id`; a number for each token, and in `values` one more for what comes after.

    blind_logps  in the image-blind control: what ratios are of, because it learns as if the image were blank; the KL is
                 still that of answers to the image
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
            raise UserError(f"{where}: expected a number for each of the {count} tokens, and in values one more.")
        return rollout

    @property
    def token_rewards(self) -> np.ndarray:
        rewards = np.zeros(len(self.tokens), dtype=np.float32)
        for part in self.rewarded:
            rewards[part.last] += part.reward
        return rewards


def weighed(rows: Sequence[Rollout], settings: PPOSettings) -> list[Rollout]:
    """The answers of a rollout with their advantages, whitened over all of them, and returns."""
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
    """A rollout's means over its answers: `reward`, `kl` to the reference (nats), `length` (tokens), `mentions`; and
    `rewarded`, the share of mentions whose reward is not 0.
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
    """Float32 numbers, as short as they can be written without loss."""
    return tuple(float(str(number)) for number in np.array(row, dtype=np.float32)[:count])


def padded(rows: Sequence[Any]) -> np.ndarray:
    """Rows of different lengths as one array, with zeros behind them."""
    array = np.zeros((len(rows), max(map(len, rows))), dtype=np.float32)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array
