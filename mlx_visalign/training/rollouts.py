"""Rollouts: the policy answers, its words are rewarded, and it learns from them for a few updates. PPO's source of batches.

One prefill of image and prompt serves sampling, log-probabilities and values; a second one, with the newest round of the
adapter off, gives the reference's log-probabilities. Log-probabilities come from the forward pass of the update itself, in
the same batches, and not from sampling: so before a rollout's first update every ratio is exactly 1.

FOLDER/rollouts/0000012.jsonl  an answer a line with all that its updates need, written before the first of them: a
                               kill in the middle of them resumes with the same numbers
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

FEW_REWARDED = 0.2  # a smaller share of rewards that are not 0 is worth a word
EMPTY_ROLLOUTS = 10  # so many in a row without any reward end a training


RewardFunction = Callable[[Sequence[Prompt], Sequence[list[int]]], list[tuple[Rewarded, ...]]]
"""Prompts and the tokens of an answer to each -> what is rewarded in each answer. The reward goes to the last token."""


@dataclass(frozen=True)
class RolloutBatch:
    """Some answers as an update takes them; `figures` are those of the whole rollout."""

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
    """Batches of the policy's own answers: `num_ppo_epochs` passes over each rollout, and then a new one.

    Prompts are taken in an order that depends on the seed and the epoch alone, rollouts going over an epoch's end.
    """

    def __init__(
        self,
        policy: Policy,
        critic: ValueHead | None,
        prompts: Sequence[Prompt],
        judge: RewardFunction,
        settings: PPOSettings,
        sampling: Sampling,
        folder: Path,
        seed: int,
        locate: Callable[[str], Path],
        blank: Path | None = None,
    ):
        """`blank`: an image that is learned from in place of every prompt's own. Answers, rewards and their KL stay as seen."""
        self.policy, self.critic, self.judge, self.settings = policy, critic, judge, settings
        self.sampling, self.folder, self.seed, self.locate = sampling, folder / "rollouts", seed, locate
        self.blank = blank
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.per_epoch = settings.rollout_batch_size // settings.batch_size
        self.number, self.taken = -1, settings.num_ppo_epochs * self.per_epoch  # as if one was just used up
        self.start: dict[str, float] = {}  # the first rollout's figures
        self.rows: list[Rollout] = []
        self._order = cache(self._shuffled)

    # -- what the loop sees -------------------------------------------------------------------------------------------

    def next(self) -> RolloutBatch:
        if self.taken >= self.settings.num_ppo_epochs * self.per_epoch:
            self._roll_out()
        epoch, index = divmod(self.taken, self.per_epoch)
        order = np.random.default_rng(number_for(self.seed, "inner", self.number, epoch)).permutation(self.per_epoch)
        self.taken += 1
        return self._batch(int(order[index]))

    def observe(self, metrics: Mapping[str, Any]) -> None:
        """End the rollout where the policy has moved too far from it for its advantages to mean anything."""
        if self.taken == self.settings.grad_accumulation_steps and metrics["ratio_off"] > SAME_RATIO:
            raise RuntimeError(
                f"Before its first update a rollout's ratios are off by {metrics['ratio_off']:.2g}: this machine does not "
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
        """Answer, reward, weigh, and save; a rollout in which nothing is rewarded has only noise to teach."""
        for _ in range(EMPTY_ROLLOUTS):
            self.number, self.taken = self.number + 1, 0
            rows = [row for prompts in self._next_prompts() for row in self._answer(prompts)]
            if any(part.reward for row in rows for part in row.rewarded):
                break
            say(f"rollout {self.number}: no word of {len(rows)} answers was rewarded; on to the next")
        else:
            raise UserError(
                f"In {EMPTY_ROLLOUTS} rollouts one after the other no word was rewarded. Do the answers name objects of the "
                "vocabulary? If they do, the margin may be too wide."
            )
        self.rows = weighed(rows, self.settings)
        write_jsonl(self._file(), self.rows)
        now = figures(self.rows)
        if not self.start:
            self.start = now
            if now["rewarded"] < FEW_REWARDED:
                say(f"warning: only {now['rewarded']:.0%} of the words judged earn or lose anything; denser rewards teach more")
        self._guard(now)

    def _next_prompts(self) -> list[list[tuple[Prompt, int]]]:
        """The prompts of this rollout in batches, each with the number of its epoch."""
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
        rewarded = self.judge(prompts, [answer.ids for answer in answers])
        return [
            Rollout(
                prompt.id,
                answer.text,
                answer.finished,
                tuple(answer.ids),
                rewarded[row],
                numbers(seen.logps[row], len(answer.ids)),
                numbers(reference[row], len(answer.ids)),
                # After the end there is nothing to come; where an answer was cut off, the critic's guess stands for it.
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
        """Stop a policy that runs away, or learns to say nothing."""
        run = self.folder.parent
        cure = (
            "No adapter was written. Lower the learning rate or raise kl_coef and train into another folder, with --reuse "
            f"{run} for what was made before the training. The last checkpoints are kept in {run / 'checkpoints'}."
        )
        if now["kl"] > self.settings.max_kl:
            raise UserError(
                f"Stopped at rollout {self.number}: the policy is {now['kl']:.1f} nats an answer away from the reference, "
                f"and max_kl is {self.settings.max_kl:g}. {cure}"
            )
        for name in ("length", "mentions"):
            if now[name] < self.settings.min_share * self.start[name]:
                raise UserError(
                    f"Stopped at rollout {self.number}: the mean {name} of an answer fell from {self.start[name]:.1f} to "
                    f"{now[name]:.1f}. Saying less is the easy way to be right. {cure}"
                )
