"""Training settings: loop, common base, PPO."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop.

    `iters` and the schedule count optimiser updates, not batches.

    iters                    updates, at least 1
    learning_rate            peak of the schedule, above 0
    schedule                 after the warm-up: half a cosine to 0, a line to 0, or constant
    warmup_ratio             share of `iters` (0 to 1, rounded up) over which the rate rises linearly from 0
    weight_decay             AdamW's decoupled decay, 0 or more
    grad_accumulation_steps  batches whose gradients are averaged for one update, at least 1
    max_grad_norm            the global norm over all groups is clipped to this, above 0
    save_every               updates between checkpoints, at least 1
    """

    iters: int
    learning_rate: float
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    grad_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    save_every: int = 50

    def __post_init__(self) -> None:
        require(
            self,
            iters=(self.iters >= 1, "1 or more"),
            learning_rate=(self.learning_rate > 0, "above 0"),
            schedule=(self.schedule in get_args(Schedule), "cosine, linear or constant"),
            warmup_ratio=(0 <= self.warmup_ratio <= 1, "from 0 to 1, a share of the updates"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            grad_accumulation_steps=(self.grad_accumulation_steps >= 1, "1 or more"),
            max_grad_norm=(self.max_grad_norm > 0, "above 0"),
            save_every=(self.save_every >= 1, "1 or more"),
        )


@dataclass(frozen=True)
class LearningSettings(ABC):
    """Base of the DPO and PPO settings.

    Subclasses document what the settings mean there, and may change the defaults.
    """

    epochs: float = 1.0
    iters: int | None = None
    batch_size: int = 1
    grad_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    save_every: int = 50
    grad_checkpoint: bool = False
    lora: LoRASettings = field(default_factory=LoRASettings)

    @abstractmethod
    def updates(self, count: int) -> int:
        """Updates in `epochs` passes over `count` pairs or prompts."""

    def loop(self, count: int) -> TrainSettings:
        """The loop's settings for `count` pairs or prompts."""
        own = {one.name: vars(self)[one.name] for one in fields(TrainSettings)}
        return TrainSettings(**own | {"iters": self.updates(count) if self.iters is None else self.iters})

    def prompts_trained(self, count: int) -> int:
        """Training passes of single prompts, over all epochs.

        A pass is the forward and backward pass of one of `count` pairs or prompts, with its answers.
        """
        return self.loop(count).iters * self.batch_size * self.grad_accumulation_steps


@dataclass(frozen=True)
class PPOSettings(LearningSettings):
    """PPO settings.

    Names and defaults are TRL's where TRL has the setting (ppo_config.py).

    kl_coef              weight of the KL penalty, in reward per nat; 0 or more
    gamma, lam           discount, and the lambda of GAE: 0 trusts the critic alone, 1 the observed rewards alone; 0 to 1
    cliprange            clip range of the probability ratio, above 0
    cliprange_value      clip range of the critic's value, above 0
    vf_coef              weight of the value loss, 0 or more
    critic               a linear head on the final hidden state, or none: V = 0 (lam 1: the sum of future rewards; lam 0:
                         the token's own reward)
    rollout_batch_size   answers in one rollout; a multiple of batch_size * grad_accumulation_steps, the answers of an update
    num_ppo_epochs       passes over a rollout, at least 1
    target_kl            a rollout ends early if the policy has moved further than this from it, in nats per token
    max_kl               training stops if the policy is further than this from the reference, in nats per answer
    min_share            training stops if length or mentions of the answers fall below this share of the first rollout's
    epochs               passes over the prompts, above 0; `iters`, if given, sets the number of updates instead. Rollouts
                         that end early leave updates for further ones
    value_learning_rate  the critic's peak learning rate
    grad_checkpoint      recompute layers in the backward pass: about half the memory for 1.5 times the time
    lora                 rank of the adapter and its scale (alpha / rank)
    The other settings are those of the training loop.
    """

    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    critic: Literal["linear", "none"] = "linear"
    rollout_batch_size: int = 16
    num_ppo_epochs: int = 4
    target_kl: float = 0.1
    max_kl: float = 5.0
    min_share: float = 0.6
    batch_size: int = 4
    grad_accumulation_steps: int = 4
    learning_rate: float = 3e-6
    value_learning_rate: float = 1e-4
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        require(
            self,
            kl_coef=(self.kl_coef >= 0, "0 or more"),
            gamma=(0 <= self.gamma <= 1, "from 0 to 1"),
            lam=(0 <= self.lam <= 1, "from 0 to 1"),
            cliprange=(self.cliprange > 0, "above 0"),
            cliprange_value=(self.cliprange_value > 0, "above 0"),
            vf_coef=(self.vf_coef >= 0, "0 or more"),
            num_ppo_epochs=(self.num_ppo_epochs >= 1, "1 or more"),
            target_kl=(self.target_kl > 0, "above 0"),
            max_kl=(self.max_kl > 0, "above 0"),
            min_share=(0 <= self.min_share <= 1, "from 0 to 1"),
            batch_size=(self.batch_size >= 1, "1 or more"),
            epochs=(self.epochs > 0, "above 0"),
            value_learning_rate=(self.value_learning_rate > 0, "above 0"),
        )
        self.loop(1)
        if self.rollout_batch_size < 1 or self.rollout_batch_size % (self.batch_size * self.grad_accumulation_steps):
            raise UserError(
                f"rollout_batch_size is {self.rollout_batch_size}; it must be a multiple of batch_size * "
                f"grad_accumulation_steps = {self.batch_size * self.grad_accumulation_steps}, the answers of one update."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """The settings, besides the loop's, that determine the final weights."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in ("epochs", "iters", "save_every", "grad_checkpoint")}

    def updates(self, count: int) -> int:
        rollouts = max(1, math.ceil(self.epochs * count / self.rollout_batch_size))
        return (
            rollouts * self.num_ppo_epochs * max(1, self.rollout_batch_size // (self.batch_size * self.grad_accumulation_steps))
        )


def schedule_factor(settings: TrainSettings, step: int) -> float:
    """Share of the peak learning rate at an update.

    `step` counts from 0; the result is in [0, 1]. With N updates of which w = ceil(warmup_ratio * N) are the warm-up:
    step / w before w, then (1 + cos(pi t)) / 2, 1 - t or 1, with t = (step - w) / (N - w). Source: transformers,
    optimization.py, `get_*_schedule_with_warmup`.
    """
    warmup_steps = math.ceil(settings.warmup_ratio * settings.iters)
    if step < warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / max(1, settings.iters - warmup_steps)
    factors = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return factors[settings.schedule]
