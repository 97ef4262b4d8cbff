"""PPO: the loss of policy and critic, and training.

The critic is an optimiser group of its own; it is saved in checkpoints but never in the adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_visalign.data.images import image_digest
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.value_head import ValueHead
from mlx_visalign.training import ppo_losses as ppo
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.rollouts import RewardFunction, RolloutBatch, RolloutSource
from mlx_visalign.training.trainer import fit
from mlx_visalign.training.training_length import short_training_warning
from mlx_visalign.utils.console import say
from mlx_visalign.utils.seeding import number_for


def ppo_loss(
    policy: Policy, critic: ValueHead | None, settings: PPOSettings
) -> Callable[[RolloutBatch], tuple[mx.array, dict[str, mx.array]]]:
    """The loss on a batch of answers, with its metrics."""

    def loss(batch: RolloutBatch) -> tuple[mx.array, dict[str, mx.array]]:
        prefix = policy.prefill(policy.image_features(batch.images), batch.prompts)
        reading = policy.read(prefix, [[ids] for ids in batch.responses])
        value, metrics = ppo.policy_loss(reading.logps, batch.logps, batch.advantages, reading.mask, settings.cliprange)
        metrics["policy_loss"] = value
        if critic is not None:
            values = critic(reading.states)[:, :-1]
            error = ppo.value_loss(values, batch.values, batch.returns, reading.mask, settings.cliprange_value)
            value, metrics["value_loss"] = value + settings.vf_coef * error, error
        rollout = {name: mx.array(number) for name, number in batch.figures.items()}
        return value, metrics | rollout | {"tokens": reading.mask.sum()}

    return loss


def train_on_rollouts(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward_function: RewardFunction,
    settings: PPOSettings,
    sampling: Sampling,
    folder: Path,
    seed: int,
    *,
    locate: Callable[[str], Path],
    blank: Path | None = None,
    depends_on: Mapping[str, Any],
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train a new round of LoRA with PPO.

    Resumes automatically; see `trainer.fit`. `locate` finds a prompt's image; `depends_on` is what the reward function
    depends on. With `blank`, an image, the policy samples and is rewarded as usual but trains as if every prompt had that
    image.
    """
    loop = settings.loop(len(prompts))
    too_little = short_training_warning(loop, None)
    if too_little:
        say(f"warning: {too_little}")
    policy.attach(settings.lora, seed=number_for(seed, "lora"))
    policy.checkpoint = settings.grad_checkpoint
    critic = None if settings.critic == "none" else ValueHead(policy.decoder.norm.weight.shape[0])
    source = RolloutSource(policy, critic, prompts, reward_function, settings, sampling, folder, seed, locate, blank)
    asked = {"seed": seed, "base": policy.base, "prompts": number_for(*prompts), "max_tokens": sampling.max_tokens}
    fit(
        {"adapter": policy.model} if critic is None else {"adapter": policy.model, "value": critic},
        ppo_loss(policy, critic, settings),
        source,
        loop,
        folder,
        on_metrics=on_metrics,
        learning_rates={} if critic is None else {"value": settings.value_learning_rate},
        depends_on={**settings.identity, **asked, **depends_on, **({} if blank is None else {"blank": image_digest(blank)})},
    )
