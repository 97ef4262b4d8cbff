"""Training settings: the loop's, those that DPO's and PPO's share, and PPO's."""

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
    """How a training runs; `iters` and the schedule count optimiser updates, not batches.

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
    """What the settings of every training of a policy hold: how long it goes on, its batches, the loop's own, the adapter.

    Each of its forms says what they mean there, and may have other defaults.
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
        """So many make `epochs` passes over `count` pairs or prompts."""

    def loop(self, count: int) -> TrainSettings:
        """The loop's settings for so many pairs or prompts."""
        own = {one.name: vars(self)[one.name] for one in fields(TrainSettings)}
        return TrainSettings(**own | {"iters": self.updates(count) if self.iters is None else self.iters})

    def prompts_trained(self, count: int) -> int:
        """How often a prompt with its answers goes forward and backward, all epochs together, of so many."""
        return self.loop(count).iters * self.batch_size * self.grad_accumulation_steps


@dataclass(frozen=True)
class PPOSettings(LearningSettings):
    """PPO on a policy's own answers. Names and defaults are TRL's where it has the setting (trl's ppo_config.py).

    kl_coef              price of a nat away from the reference, against the rewards; 0 or more
    gamma, lam           discount, and the mix of GAE: how far a token is credited with what comes after it, and how much the
                         critic's guess is trusted over what came; 0 to 1
    cliprange            how far the ratio may move in a rollout and still be rewarded for it; above 0
    cliprange_value      the same for the critic's value
    vf_coef              weight of the critic's loss beside the policy's; 0 or more
    critic               a linear head on the final hidden state, or none: V = 0 (lam 1: the reward to come; lam 0: the
                         token's own reward)
    rollout_batch_size   answers in one rollout; a multiple of batch_size * grad_accumulation_steps, the answers of an update
    num_ppo_epochs       passes over a rollout, at least 1
    target_kl            a rollout ends early where the policy has moved further than this from it, in nats a token
    max_kl               the training stops where it is further than this from the reference, in nats an answer
    min_share            the training stops where answers have less than this share of their first length or mentions
    epochs               passes over the prompts, above 0; `iters` updates instead where that is given. Rollouts that end
                         early leave updates for more of them
    value_learning_rate  the critic's peak rate
    grad_checkpoint      recompute layers in the backward pass: about half the memory for half again the time
    lora                 rank of the adapter and its scale (alpha / rank)
    The rest is as in the training loop.
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
        """What decides the final weights, beside the loop's own settings."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in ("epochs", "iters", "save_every", "grad_checkpoint")}

    def updates(self, count: int) -> int:
        rollouts = max(1, math.ceil(self.epochs * count / self.rollout_batch_size))
        return (
            rollouts * self.num_ppo_epochs * max(1, self.rollout_batch_size // (self.batch_size * self.grad_accumulation_steps))
        )


def schedule_factor(settings: TrainSettings, step: int) -> float:
    """The share of the peak learning rate at update `step`, counted from 0. In [0, 1].

    With N updates of which w = ceil(warmup_ratio * N) warm up: step / w before w, then with t = (step - w) / (N - w)
    (1 + cos(pi t)) / 2, 1 - t, or 1. Source: transformers, optimization.py, `get_*_schedule_with_warmup`.
    """
    warmup_steps = math.ceil(settings.warmup_ratio * settings.iters)
    if step < warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / max(1, settings.iters - warmup_steps)
    factors = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return factors[settings.schedule]
