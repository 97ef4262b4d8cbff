"""Preference training: pairs in, an adapter out. The source of batches for the loop, and DPO's loss on the policy.

Reference log-probabilities are data. A pair brings them from the stage that made it, where they were scored while the
image was still hot; pairs from outside are scored once, here, before training. The reference is never a second model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_visalign.data.records import Pair
from mlx_visalign.data.training_log import WINDOW, warning_signs
from mlx_visalign.inference.policy import Policy
from mlx_visalign.training.config import LearningSettings
from mlx_visalign.training.losses import dpo_loss
from mlx_visalign.training.trainer import fit
from mlx_visalign.training.training_length import foretell
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import number_for

BUCKET = 16  # batches are cut from a shuffled list of this many batches' pairs, sorted by length


@dataclass(frozen=True)
class PreferenceSettings(LearningSettings):
    """How pairs become an adapter.

    beta               strength of DPO's pull towards the reference, above 0 (0.1 in SeVa, CSR and SIMA)
    rpo_alpha          weight of the chosen answers' own likelihood in the loss, 0 and up; DPO alone is content where both
                       answers get less likely, as long as the rejected one does so faster, and ends in neither (0: DPO)
    epochs             passes over the pairs, above 0; `iters` updates instead where that is given
    batch_size         pairs in one forward; times `grad_accumulation` it is the pairs of one update
    checkpoint_layers  recompute layers in the backward pass: about half the memory for half again the time
    lora               rank of the adapter and its scale (alpha / rank)
    The rest is as in the training loop.
    """

    beta: float = 0.1
    rpo_alpha: float = 0.0

    def __post_init__(self) -> None:
        require(
            self,
            beta=(self.beta > 0, "above 0"),
            rpo_alpha=(self.rpo_alpha >= 0, "0 or more"),
            epochs=(self.epochs > 0, "above 0"),
            batch_size=(self.batch_size >= 1, "1 or more"),
        )
        self.loop(1)  # the loop's settings are checked now, not when all answers are there

    def updates(self, count: int) -> int:
        return max(1, math.ceil(self.epochs * count / (self.batch_size * self.grad_accumulation)))


@dataclass(frozen=True)
class PairBatch:
    """Some pairs as the model takes them."""

    ids: list[str]
    images: list[str]
    prompts: list[list[int]]
    responses: list[list[list[int]]]  # [chosen, rejected] a pair
    reference_logps: list[tuple[float, float]]
    label_smoothing: list[float]

    @property
    def tokens(self) -> int:
        """Response tokens, end tokens included."""
        return sum(len(ids) for pair in self.responses for ids in pair)


class PairSource:
    """Batches of pairs, every pair once an epoch, in an order that depends on the seed and the epoch alone.

    Pairs of like length share a batch, so little is computed for padding and buffers are reused; which batch comes when
    is random.
    """

    def __init__(self, policy: Policy, pairs: Sequence[Pair], batch_size: int, seed: int):
        self.policy, self.batch_size, self.seed = policy, batch_size, seed
        self.pairs = list(pairs)
        self.lengths = [len(policy.response_ids(p.chosen)) + len(policy.response_ids(p.rejected)) for p in self.pairs]
        self.batches_per_epoch = math.ceil(len(self.pairs) / batch_size)
        self.taken = 0
        self._order = cache(self._shuffled)

    def next(self) -> PairBatch:
        epoch, index = divmod(self.taken, self.batches_per_epoch)
        self.taken += 1
        return pair_batch(self.policy, [self.pairs[i] for i in self._order(epoch)[index]])

    def observe(self, metrics: dict[str, Any]) -> None:
        """Pairs do not change with how the training goes."""

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng(number_for(self.seed, "pairs", epoch))
        order = rng.permutation(len(self.pairs)).tolist()
        bucket = BUCKET * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), bucket):
            by_length = sorted(order[start : start + bucket], key=lambda i: self.lengths[i])
            batches += [by_length[at : at + self.batch_size] for at in range(0, len(by_length), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def pair_batch(policy: Policy, pairs: Sequence[Pair]) -> PairBatch:
    """Tokenise some pairs. Raises `UserError` where one has no reference."""
    require_reference(pairs)
    return PairBatch(
        ids=[pair.id for pair in pairs],
        images=[image for pair in pairs for image in pair.images],
        prompts=[policy.prompt_ids(pair.prompt) for pair in pairs],
        responses=[[policy.response_ids(pair.chosen), policy.response_ids(pair.rejected)] for pair in pairs],
        reference_logps=[pair.reference_logps for pair in pairs if pair.reference_logps is not None],
        label_smoothing=[pair.label_smoothing for pair in pairs],
    )


def require_reference(pairs: Sequence[Pair]) -> None:
    """Raises `UserError` for a pair without reference log-probabilities, as in a stage's file that somebody has edited."""
    for pair in pairs:
        if pair.reference_logps is None:
            raise UserError(
                f"The pair {pair.id} has no reference_logps, which DPO measures against: `with_reference` makes them, and "
                "so does the stage that made the pair, once its file is moved away."
            )


def pair_logps(policy: Policy, batch: PairBatch) -> mx.array:
    """The policy's summed log-probabilities [b, 2] of chosen and rejected, the shared prompt and image read once.

    The two are read one after the other: in one batch the shorter answer would be padded to the longer one's length.
    """
    prefix = policy.prefill(policy.image_features(batch.images), batch.prompts)
    sides = zip(*batch.responses, strict=True)
    return mx.concatenate([policy.score(prefix, [[ids] for ids in side]) for side in sides], axis=1)


def preference_loss(
    policy: Policy, beta: float, rpo_alpha: float = 0.0
) -> Callable[[PairBatch], tuple[mx.array, dict[str, mx.array]]]:
    """DPO + rpo_alpha * NLL of the chosen answers on a batch of pairs, with the metrics the training log shows.

    The NLL is the mean over all tokens of the chosen answers, as in TRL (`loss_type=["sigmoid", "sft"]`); Pang et al. 2024
    (arXiv 2404.19733, equation 1), whose idea it is, take each answer's own mean.
    """

    def loss(batch: PairBatch) -> tuple[mx.array, dict[str, mx.array]]:
        logps = pair_logps(policy, batch)
        reference = mx.array(batch.reference_logps)
        smoothing = mx.array(batch.label_smoothing)
        dpo, metrics = dpo_loss(logps[:, 0], logps[:, 1], reference[:, 0], reference[:, 1], beta, smoothing)
        lengths = np.array([[len(ids) for ids in pair] for pair in batch.responses]).mean(axis=0)
        value = dpo - rpo_alpha * logps[:, 0].mean() / float(lengths[0])
        return value, metrics | {
            "dpo_loss": dpo,
            "chosen_logps": logps[:, 0].mean(),
            "rejected_logps": logps[:, 1].mean(),
            "chosen_length": mx.array(lengths[0]),
            "rejected_length": mx.array(lengths[1]),
            "tokens": mx.array(batch.tokens),
        }

    return loss


def with_reference(policy: Policy, pairs: Sequence[Pair]) -> list[Pair]:
    """Score pairs under the policy as it is now: what DPO will measure every later step against."""
    blank = [replace(pair, reference_logps=(0.0, 0.0)) for pair in pairs]
    logps = np.array(pair_logps(policy, pair_batch(policy, blank)), dtype=np.float64)
    return [replace(pair, reference_logps=(float(c), float(r))) for pair, (c, r) in zip(pairs, logps, strict=True)]


def train_on_pairs(
    policy: Policy,
    pairs: Sequence[Pair],
    settings: PreferenceSettings,
    folder: Path,
    seed: int,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Add one round of LoRA to the policy and train it with DPO. Resumes by itself; see `trainer.fit`.

    Raises `UserError` where there are no pairs, and where one has no reference.
    """
    if not pairs:
        raise UserError("There are no pairs to train on: all answers were the same, cut off or filtered out.")
    require_reference(pairs)  # now, and not when the turn comes to the one that has none
    too_little = foretell(settings.loop(len(pairs)), len(pairs))
    if too_little:
        say(f"warning: {too_little}")
    policy.attach(settings.lora, seed=number_for(seed, "lora"))
    policy.checkpoint = settings.checkpoint_layers
    source = PairSource(policy, pairs, settings.batch_size, seed)
    depends_on = {
        "beta": settings.beta,
        "rpo_alpha": settings.rpo_alpha,
        "seed": seed,
        "base": policy.base,
        "pairs": _digest(pairs),
        "lora": asdict(settings.lora),
    }
    watch = Watch()

    def each_row(row: dict[str, Any]) -> None:
        watch(row)
        if on_metrics is not None:
            on_metrics(row)

    fit(
        {"adapter": policy.model},
        preference_loss(policy, settings.beta, settings.rpo_alpha),
        source,
        settings.loop(len(pairs)),
        folder,
        on_metrics=each_row,
        depends_on=depends_on,
    )


class Watch:
    """Says once, while the training still runs, what looks wrong in its metrics."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.said: set[str] = set()

    def __call__(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) > 1 and len(self.rows) % WINDOW:
            return
        for name, sign in warning_signs(self.rows).items():
            if name not in self.said:
                self.said.add(name)
                say(f"warning: {sign}")


def _digest(pairs: Sequence[Pair]) -> int:
    """Tells one list of pairs from another, wherever the images lie."""
    return number_for(*(replace(pair, images=()) for pair in pairs))


def reward_accuracy(policy: Policy, pairs: Sequence[Pair], beta: float, batch: int) -> dict[str, float]:
    """On pairs that were not trained on: how often, and by how much, the chosen answer's reward is the higher."""
    margins: list[float] = []
    for start in range(0, len(pairs), batch):
        scored = pair_batch(policy, pairs[start : start + batch])
        change = np.array(pair_logps(policy, scored)) - np.array(scored.reference_logps)
        margins += (beta * (change[:, 0] - change[:, 1])).tolist()
    return {"pairs": len(margins), "accuracy": float(np.mean(np.array(margins) > 0)), "margin": float(np.mean(margins))}
