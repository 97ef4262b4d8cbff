"""A guard against trainings that make answers shorter.

Saying less is an easy way to avoid errors, and DPO, which compares sums over tokens, teaches it wherever rejected answers are
longer. So the policy answers some fixed prompts now and then while it trains.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlx_visalign.inference.policy import Policy
from mlx_visalign.utils.errors import UserError

APART, TIMES = 10, 10  # at least so many updates lie between two measurements, and at most so many are made


def apart(updates: int) -> int:
    """Updates between two measurements of a training."""
    return max(APART, math.ceil(updates / TIMES))


def measurements(updates: int) -> int:
    """Measurements in a training, that of the base included."""
    return 1 + math.ceil(updates / apart(updates))


@dataclass
class LengthGuard:
    """How long answers are, measured while a policy trains.

    mean_tokens  the mean length of the policy's greedy answers to fixed prompts, so that no random draw is used up
    updates      the training's
    min_share    answers must keep at least this share of the base's length; 0: any length will do
    run          the folder of the run that trains
    share        the mean length as last measured, as a share of the base's
    """

    policy: Policy
    mean_tokens: Callable[[], float]
    updates: int
    min_share: float
    run: Path
    share: float = 1.0

    @cached_property
    def base_tokens(self) -> float:
        with self.policy.adapter_off():
            return self.mean_tokens()

    def measure(self, update: int) -> float:
        """The share after an update, measured anew if due."""
        if update == self.updates or update % apart(self.updates) == 0:
            self.share = self.mean_tokens() / self.base_tokens
        return self.share

    def check(self) -> None:
        """Raise `UserError` if answers have become too short."""
        if self.share < self.min_share:
            raise UserError(
                f"Stopped: the answers' mean length fell from {self.base_tokens:.1f} to {self.share * self.base_tokens:.1f} "
                f"tokens, below min_share = {self.min_share:g} of the base's. Saying less is an easy way to avoid errors. No "
                "adapter was written. Balance the pairs' lengths (--set max_length_gap=2), keep chosen answers likely (--set "
                "train.rpo_alpha=1) or lower the learning rate, and train into another folder with --reuse "
                f"{self.run}, which reuses all stages before the training. If shorter answers are what you want, repeat the "
                "same command with --set train.min_share=0; it goes on at the last checkpoint."
            )
