"""The training loop's settings, and the form in which DPO's and PPO's settings hold them."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.utils.schema import require

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class TrainSettings:
    """How a training runs; `iters` and the schedule count optimiser updates, not batches.

    iters              updates, at least 1
    learning_rate      peak of the schedule, above 0
    schedule           after the warm-up: half a cosine to 0, a line to 0, or constant
    warmup             share of `iters` (0 to 1, rounded up) over which the rate rises linearly from 0
    weight_decay       AdamW's decoupled decay, 0 or more
    grad_accumulation  batches whose gradients are averaged for one update, at least 1
    max_grad_norm      the global norm over all groups is clipped to this, above 0
    save_every         updates between checkpoints, at least 1
    """

    iters: int
    learning_rate: float
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    grad_accumulation: int = 1
    max_grad_norm: float = 1.0
    save_every: int = 50

    def __post_init__(self) -> None:
        require(
            self,
            iters=(self.iters >= 1, "1 or more"),
            learning_rate=(self.learning_rate > 0, "above 0"),
            schedule=(self.schedule in get_args(Schedule), "cosine, linear or constant"),
            warmup=(0 <= self.warmup <= 1, "from 0 to 1, a share of the updates"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            grad_accumulation=(self.grad_accumulation >= 1, "1 or more"),
            max_grad_norm=(self.max_grad_norm > 0, "above 0"),
            save_every=(self.save_every >= 1, "1 or more"),
        )


@dataclass(frozen=True)
class LearningSettings(ABC):
    """What the settings of every training of a policy hold: how long it goes on, its batches, the loop's own, the adapter.

    Each of its forms says what they mean there, and may have other defaults.
    """

    epochs: float = 1.0
    iters: int | None = None
    batch_size: int = 1
    grad_accumulation: int = 1
    learning_rate: float = 1e-5
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    save_every: int = 50
    checkpoint_layers: bool = False
    lora: LoRASettings = field(default_factory=LoRASettings)

    @abstractmethod
    def updates(self, count: int) -> int:
        """So many make `epochs` passes over `count` pairs or prompts."""

    def loop(self, count: int) -> TrainSettings:
        """The loop's settings for so many pairs or prompts."""
        own = {one.name: vars(self)[one.name] for one in fields(TrainSettings)}
        return TrainSettings(**own | {"iters": self.updates(count) if self.iters is None else self.iters})

    def prompts_trained(self, count: int) -> int:
        """How often a prompt with its answers goes forward and backward, all epochs together, of so many."""
        return self.loop(count).iters * self.batch_size * self.grad_accumulation


def schedule_factor(settings: TrainSettings, step: int) -> float:
    """The share of the peak learning rate at update `step`, counted from 0. In [0, 1].

    With N updates of which w = ceil(warmup * N) warm up: step / w before w, then with t = (step - w) / (N - w)
    (1 + cos(pi t)) / 2, 1 - t, or 1. Source: transformers, optimization.py, `get_*_schedule_with_warmup`.
    """
    warmup_steps = math.ceil(settings.warmup * settings.iters)
    if step < warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / max(1, settings.iters - warmup_steps)
    factors = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return factors[settings.schedule]
