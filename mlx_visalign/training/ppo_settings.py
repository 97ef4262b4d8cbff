"""The settings of a training with PPO."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlx_visalign.training.config import LearningSettings, Schedule
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require


@dataclass(frozen=True)
class PPOSettings(LearningSettings):
    """How a policy learns from its own answers. Defaults are TRL's where it has the setting (trl's ppo_config.py).

    beta                 price of a nat away from the reference, against the rewards; 0 or more
    gamma, lam           how far a token is held to account for what comes after it, and how much the critic's guess is
                         trusted over what came; 0 to 1
    clip, value_clip     how far the ratio, and the value, may move in a rollout and still be rewarded for it; above 0
    value_weight         of the critic's loss beside the policy's; 0 or more
    critic               a linear head on the final hidden state, or none: V = 0 (lam 1: the reward to come; lam 0: the
                         token's own reward)
    rollout              answers in one rollout; a multiple of batch_size * grad_accumulation, the answers of one update
    inner_epochs         passes over a rollout, at least 1
    max_step_kl          a rollout ends early where the policy has moved further than this from it, in nats a token
    max_kl               the training stops where it is further than this from the reference, in nats an answer
    min_share            the training stops where answers have less than this share of their first length or mentions
    epochs               passes over the prompts, above 0; `iters` updates instead where that is given. Rollouts that end
                         early leave updates for more of them
    value_learning_rate  the critic's peak rate
    checkpoint_layers    recompute layers in the backward pass: about half the memory for half again the time
    lora                 rank of the adapter and its scale (alpha / rank)
    The rest is as in the training loop.
    """

    beta: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    critic: Literal["linear", "none"] = "linear"
    rollout: int = 16
    inner_epochs: int = 4
    max_step_kl: float = 0.1
    max_kl: float = 5.0
    min_share: float = 0.6
    batch_size: int = 4
    grad_accumulation: int = 4
    learning_rate: float = 3e-6
    value_learning_rate: float = 1e-4
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        require(
            self,
            beta=(self.beta >= 0, "0 or more"),
            gamma=(0 <= self.gamma <= 1, "from 0 to 1"),
            lam=(0 <= self.lam <= 1, "from 0 to 1"),
            clip=(self.clip > 0, "above 0"),
            value_clip=(self.value_clip > 0, "above 0"),
            value_weight=(self.value_weight >= 0, "0 or more"),
            inner_epochs=(self.inner_epochs >= 1, "1 or more"),
            max_step_kl=(self.max_step_kl > 0, "above 0"),
            max_kl=(self.max_kl > 0, "above 0"),
            min_share=(0 <= self.min_share <= 1, "from 0 to 1"),
            batch_size=(self.batch_size >= 1, "1 or more"),
            epochs=(self.epochs > 0, "above 0"),
            value_learning_rate=(self.value_learning_rate > 0, "above 0"),
        )
        self.loop(1)
        if self.rollout < 1 or self.rollout % (self.batch_size * self.grad_accumulation):
            raise UserError(
                f"rollout is {self.rollout}; it must be a multiple of batch_size * grad_accumulation = "
                f"{self.batch_size * self.grad_accumulation}, the answers of one update."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the final weights, beside the loop's own settings."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in ("epochs", "iters", "save_every", "checkpoint_layers")}

    def updates(self, count: int) -> int:
        rollouts = max(1, math.ceil(self.epochs * count / self.rollout))
        return rollouts * self.inner_epochs * max(1, self.rollout // (self.batch_size * self.grad_accumulation))
