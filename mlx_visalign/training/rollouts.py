"""PPO rollouts: sample answers, reward them, batch them.

One prefill of image and prompt serves sampling, log-probabilities and values; a second one, with the newest round of the
adapter off, gives the reference log-probabilities. Log-probabilities come from the forward pass that the updates use, in the
same batches, not from sampling, so before a rollout's first update every ratio is exactly 1.

FOLDER/rollouts/0000012.jsonl  one answer per line with everything its updates need, written before the first update, so
                               that a run killed between updates resumes with the same numbers
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_visalign.data.records import Prompt, read_jsonl, write_jsonl
from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.models.lora import adapter_at, adapters
from mlx_visalign.models.value_head import ValueHead
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.trajectory import Rewarded, Rollout, figures, numbers, padded, weighed
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.seeding import key_for, number_for
from mlx_visalign.utils.tolerances import SAME_RATIO

FEW_REWARDED = 0.2  # warn if a smaller share of rewards is not 0
EMPTY_ROLLOUTS = 10  # training stops after this many in a row without any reward


RewardFunction = Callable[[Sequence[Prompt], Sequence[list[int]]], list[tuple[Rewarded, ...]]]
"""Prompts and an answer's tokens for each -> the rewarded spans of each answer. A span's last token gets its reward."""


@dataclass(frozen=True)
class RolloutBatch:
    """A batch of answers; `figures` describe the whole rollout."""

    ids: list[str]
    images: list[Path]
    prompts: list[list[int]]
    responses: list[list[int]]
    logps: mx.array
    advantages: mx.array
    values: mx.array
    returns: mx.array
    figures: dict[str, float]


class RolloutSource:
    """Batches of the policy's own answers.

    Each rollout is used for `num_ppo_epochs` passes, then a new one is sampled. The order of prompts depends on the seed and
    the epoch alone; a rollout may span two epochs.
    """

    def __init__(
        self,
        policy: Policy,
        critic: ValueHead | None,
        prompts: Sequence[Prompt],
        reward_function: RewardFunction,
        settings: PPOSettings,
        sampling: Sampling,
        folder: Path,
        seed: int,
        locate: Callable[[str], Path],
        blank: Path | None = None,
    ):
        """`blank`: an image to train on in place of each prompt's own; answers, rewards and KL still use the real image."""
        self.policy, self.critic, self.reward_function, self.settings = policy, critic, reward_function, settings
        self.sampling, self.folder, self.seed, self.locate = sampling, folder / "rollouts", seed, locate
        self.blank = blank
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.per_epoch = settings.rollout_batch_size // settings.batch_size
        self.number, self.taken = -1, settings.num_ppo_epochs * self.per_epoch  # as if one had just been used up
        self.start: dict[str, float] = {}  # the first rollout's figures
        self.rows: list[Rollout] = []
        self._order = cache(self._shuffled)

    # -- interface of the loop -------------------------------------------------------------------------------------------

    def next(self) -> RolloutBatch:
        if self.taken >= self.settings.num_ppo_epochs * self.per_epoch:
            self._roll_out()
        epoch, index = divmod(self.taken, self.per_epoch)
        order = np.random.default_rng(number_for(self.seed, "inner", self.number, epoch)).permutation(self.per_epoch)
        self.taken += 1
        return self._batch(int(order[index]))

    def observe(self, metrics: Mapping[str, Any]) -> None:
        """End the rollout early beyond `target_kl`.

        The policy has then moved too far for the rollout's advantages to hold.
        """
        if self.taken == self.settings.grad_accumulation_steps and metrics["ratio_off"] > SAME_RATIO:
            raise RuntimeError(
                f"The ratios are off by {metrics['ratio_off']:.2g} before a rollout's first update: this machine does not "
                "compute the same log-probabilities twice."
            )
        if metrics["approx_kl"] > self.settings.target_kl:
            self.taken = self.settings.num_ppo_epochs * self.per_epoch

    def state(self) -> dict[str, Any]:
        return {"number": self.number, "taken": self.taken, "start": self.start}

    def restore(self, state: dict[str, Any]) -> None:
        self.number, self.taken, self.start = state["number"], state["taken"], state["start"]
        self.rows = read_jsonl(self._file(), Rollout)

    # -- one rollout --------------------------------------------------------------------------------------------------

    def _roll_out(self) -> None:
        """Sample, reward, compute advantages, save. A rollout without any reward is skipped: its advantages are noise."""
        for _ in range(EMPTY_ROLLOUTS):
            self.number, self.taken = self.number + 1, 0
            rows = [row for prompts in self._next_prompts() for row in self._answer(prompts)]
            if any(part.reward for row in rows for part in row.rewarded):
                break
            say(f"rollout {self.number}: nothing in {len(rows)} answers was rewarded; sampling the next")
        else:
            raise UserError(
                f"Nothing was rewarded in {EMPTY_ROLLOUTS} consecutive rollouts. Check that the answers name objects of the "
                "vocabulary; if they do, the margin may be too wide."
            )
        self.rows = weighed(rows, self.settings)
        write_jsonl(self._file(), self.rows)
        now = figures(self.rows)
        if not self.start:
            self.start = now
            if now["rewarded"] < FEW_REWARDED:
                say(f"warning: only {now['rewarded']:.0%} of the scored mentions have a reward other than 0; more would help")
        self._guard(now)

    def _next_prompts(self) -> list[list[tuple[Prompt, int]]]:
        """The prompts of this rollout in batches, each with its epoch."""
        size, first = self.settings.batch_size, self.number * self.settings.rollout_batch_size
        places = [divmod(first + i, len(self.prompts)) for i in range(self.settings.rollout_batch_size)]
        drawn = [(self.prompts[self._order(epoch)[index]], epoch) for epoch, index in places]
        return [drawn[at : at + size] for at in range(0, len(drawn), size)]

    def _shuffled(self, epoch: int) -> list[str]:
        ids = list(self.prompts)
        rng = np.random.default_rng(number_for(self.seed, "prompts", epoch))
        return [ids[i] for i in rng.permutation(len(ids))]

    def _answer(self, drawn: Sequence[tuple[Prompt, int]]) -> list[Rollout]:
        policy, prompts = self.policy, [prompt for prompt, _ in drawn]
        keys = [key_for(self.seed, prompt.id, "rollout", epoch) for prompt, epoch in drawn]
        features = policy.image_features([self.locate(prompt.image) for prompt in prompts])
        ids = [policy.prompt_ids(prompt.prompt) for prompt in prompts]
        prefix = policy.prefill(features, ids)
        answers = policy.generate(prefix, self.sampling, keys)
        responses = [[answer.ids] for answer in answers]
        seen = reading = policy.read(prefix, responses)
        if self.blank is not None:
            reading = policy.read(policy.prefill(policy.image_features(self._learned_from(prompts)), ids), responses)
        values = mx.zeros(reading.states.shape[:2]) if self.critic is None else self.critic(reading.states)
        rounds = next(iter(adapters(policy.model).values())).rounds_on
        with adapter_at(policy.model, rounds - 1):
            reference = policy.read(policy.prefill(features, ids), responses).logps
        mx.eval(seen.logps, reading.logps, values, reference)
        rewarded = self.reward_function(prompts, [answer.ids for answer in answers])
        return [
            Rollout(
                prompt.id,
                answer.text,
                answer.finished,
                tuple(answer.ids),
                rewarded[row],
                numbers(seen.logps[row], len(answer.ids)),
                numbers(reference[row], len(answer.ids)),
                # Nothing follows a finished answer; for one that was cut off, the critic predicts what would follow.
                (*numbers(values[row], len(answer.ids)), 0.0 if answer.finished else float(values[row, len(answer.ids)])),
                blind_logps=() if self.blank is None else numbers(reading.logps[row], len(answer.ids)),
            )
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]

    def _batch(self, index: int) -> RolloutBatch:
        size = self.settings.batch_size
        rows = self.rows[index * size : (index + 1) * size]
        prompts = [self.prompts[row.id] for row in rows]
        return RolloutBatch(
            [row.id for row in rows],
            self._learned_from(prompts),
            [self.policy.prompt_ids(prompt.prompt) for prompt in prompts],
            [list(row.tokens) for row in rows],
            mx.array(padded([row.logps if self.blank is None else row.blind_logps for row in rows])),
            mx.array(padded([row.advantages for row in rows])),
            mx.array(padded([row.values[:-1] for row in rows])),
            mx.array(padded([row.returns for row in rows])),
            figures(self.rows),
        )

    def _learned_from(self, prompts: Sequence[Prompt]) -> list[Path]:
        return [self.blank or self.locate(prompt.image) for prompt in prompts]

    def _file(self) -> Path:
        return self.folder / f"{self.number:07d}.jsonl"

    def _guard(self, now: Mapping[str, float]) -> None:
        """Stop a policy that diverges or whose answers collapse."""
        run = self.folder.parent
        cure = (
            "No adapter was written. Lower the learning rate or raise kl_coef, and train into another folder with --reuse "
            f"{run}, which reuses all stages before the training. The last checkpoints are in {run / 'checkpoints'}."
        )
        if now["kl"] > self.settings.max_kl:
            raise UserError(
                f"Stopped at rollout {self.number}: the KL to the reference is {now['kl']:.1f} nats per answer, above "
                f"max_kl = {self.settings.max_kl:g}. {cure}"
            )
        for name in ("length", "mentions"):
            if now[name] < self.settings.min_share * self.start[name]:
                raise UserError(
                    f"Stopped at rollout {self.number}: the answers' mean {name} fell from {self.start[name]:.1f} to "
                    f"{now[name]:.1f}. Saying less is an easy way to avoid errors. {cure}"
                )
