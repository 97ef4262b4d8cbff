"""DPO on preference pairs: batches, loss and training.

Reference log-probabilities are data. The stage that makes a pair also scores it, while the image's prefix is still in
memory; pairs from elsewhere, and what some losses need in addition, are scored once before training (`with_reference`). The
reference is never a second model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
from jaxtyping import Float
from PIL import Image

from mlx_visalign.data.augment.draws import random_box
from mlx_visalign.data.images import Picture, open_image
from mlx_visalign.data.records import Pair
from mlx_visalign.data.training_log import SHORTER, WINDOW, warning_signs
from mlx_visalign.inference.policy import Policy
from mlx_visalign.training.config import LearningSettings
from mlx_visalign.training.length_guard import LengthGuard
from mlx_visalign.training.losses import (
    LN2,
    PAIR,
    LossType,
    PairLoss,
    Read,
    Scored,
    Side,
    Variant,
    name_of,
    pair_loss,
    reward_metrics,
)
from mlx_visalign.training.trainer import fit
from mlx_visalign.training.training_length import short_training_warning
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import key_for, number_for

BUCKET = 16  # this many batches' pairs are sorted by length together
CROP = (0.01, 0.2)  # share of the area that a damaged image keeps


@dataclass(frozen=True)
class PreferenceSettings(LearningSettings):
    """DPO settings.

    loss_type          sigmoid is DPO; ipo, hinge (SLiC) and robust (rDPO) as in TRL; mdpo also compares images, see `losses`
    beta               strength of the pull towards the reference, above 0 (0.1 in SeVa, CSR and SIMA); tau of ipo
    label_smoothing    sigmoid only: the probability that a preference is flipped, 0 to below 0.5 (cDPO); overridden by a
                       pair's own label_smoothing unless that is 0
    noise              robust only: the rate of flipped preferences, 0 to below 0.5
    rpo_alpha          weight of the chosen answers' NLL in the loss, 0 or more (0: DPO). DPO alone can make both answers
                       less likely, as long as the rejected one falls faster; the NLL prevents that
    min_share          in the runs of methods: training stops if answers keep less than this share of the base's length, 0 to 1
    epochs             passes over the pairs, above 0; `iters`, if given, sets the number of updates instead
    batch_size         pairs per forward pass; times `grad_accumulation_steps`, the pairs of one update
    grad_checkpoint    recompute layers in the backward pass: about half the memory for 1.5 times the time
    lora               rank of the adapter and its scale (alpha / rank)
    The other settings are those of the training loop.
    """

    loss_type: LossType = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    noise: float = 0.0
    rpo_alpha: float = 0.0
    min_share: float = 0.75

    def __post_init__(self) -> None:
        require(
            self,
            loss_type=(self.loss_type in get_args(LossType), f"one of {', '.join(get_args(LossType))}"),
            beta=(self.beta > 0, "above 0"),
            label_smoothing=_rate(self.label_smoothing, self.loss_type == "sigmoid", "sigmoid"),
            noise=_rate(self.noise, self.loss_type == "robust", "robust"),
            rpo_alpha=(self.rpo_alpha >= 0, "0 or more"),
            min_share=(0 <= self.min_share <= 1, "from 0 to 1"),
            epochs=(self.epochs > 0, "above 0"),
            batch_size=(self.batch_size >= 1, "1 or more"),
        )
        self.loop(1)  # check the loop's settings now, not after all answers have been sampled

    @property
    def loss(self) -> PairLoss:
        return pair_loss(self.loss_type, self.beta, self.noise)

    def updates(self, count: int) -> int:
        return max(1, math.ceil(self.epochs * count / (self.batch_size * self.grad_accumulation_steps)))


def _rate(value: float, is_used: bool, loss_type: str) -> tuple[bool, str]:
    """Whether a rate of flipped preferences is in range; it must be 0 if the loss in use is not `loss_type`."""
    return (0 <= value < 0.5, "at least 0 and below 0.5") if is_used else (value == 0, f"0 unless loss_type is {loss_type}")


@dataclass(frozen=True)
class PairBatch:
    """Tokenised pairs.

    How an image is damaged depends on `seed` and the pair's id alone.
    """

    ids: list[str]
    images: list[str]
    prompts: list[list[int]]
    responses: list[list[list[int]]]  # [chosen, rejected] a pair
    reference_logps: list[dict[str, float]]
    label_smoothing: list[float]
    seed: int = 0

    def pictures(self, variant: Variant) -> Sequence[Picture]:
        if variant == "clean":
            return self.images
        return [damaged(image, key_for(self.seed, id, variant)) for image, id in zip(self.images, self.ids, strict=True)]

    @property
    def tokens(self) -> int:
        """Response tokens, end tokens included."""
        return sum(len(ids) for pair in self.responses for ids in pair)


class PairSource:
    """Shuffled batches of pairs.

    Every epoch has each pair once, in an order that depends on the seed and the epoch alone. Pairs of similar length share
    a batch, so little is spent on padding and buffers are reused; the order of batches is random.
    """

    def __init__(self, policy: Policy, pairs: Sequence[Pair], batch_size: int, seed: int, guard: LengthGuard | None = None):
        """`seed` determines the order and how images are damaged."""
        self.policy, self.batch_size, self.seed, self.guard = policy, batch_size, seed, guard
        self.pairs = list(pairs)
        self.lengths = [sum(map(len, policy.pair_ids(pair))) for pair in self.pairs]
        self.batches_per_epoch = math.ceil(len(self.pairs) / batch_size)
        self.taken = 0
        self._order = cache(self._shuffled)

    def next(self) -> PairBatch:
        epoch, index = divmod(self.taken, self.batches_per_epoch)
        self.taken += 1
        return pair_batch(self.policy, [self.pairs[i] for i in self._order(epoch)[index]], self.seed)

    def observe(self, metrics: dict[str, Any]) -> None:
        """Add the length of answers, where it is guarded.

        The pairs do not depend on the training's progress.
        """
        if self.guard is not None:
            metrics["answer_length"] = self.guard.measure(metrics["iteration"])

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken} | ({} if self.guard is None else {"answer_length": self.guard.share})

    def restore(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        if self.guard is not None:
            self.guard.share = state.get("answer_length", 1.0)  # a checkpoint made before there was a guard has none

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng(number_for(self.seed, "pairs", epoch))
        order = rng.permutation(len(self.pairs)).tolist()
        bucket = BUCKET * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), bucket):
            by_length = sorted(order[start : start + bucket], key=lambda i: self.lengths[i])
            batches += [by_length[at : at + self.batch_size] for at in range(0, len(by_length), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def damaged(image: str, key: mx.array) -> Image.Image:
    """A random crop, 1 to 20 % of the area.

    Width / height is log-uniform in 3/4..4/3; of very long or very small images more may remain (see `random_box`).
    Source: mDPO (arXiv 2406.11839), whose released code hides image tokens instead (luka-group/mDPO).
    """
    whole = open_image(image)
    box = random_box(key, whole.height, whole.width, CROP)
    return whole.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def pair_batch(policy: Policy, pairs: Sequence[Pair], seed: int = 0) -> PairBatch:
    """Tokenise pairs."""
    return PairBatch(
        ids=[pair.id for pair in pairs],
        images=[image for pair in pairs for image in pair.images],
        prompts=[policy.prompt_ids(pair.prompt) for pair in pairs],
        responses=[policy.pair_ids(pair) for pair in pairs],
        reference_logps=[pair.reference_logps or {} for pair in pairs],
        label_smoothing=[pair.label_smoothing for pair in pairs],
        seed=seed,
    )


def require_usable(pairs: Sequence[Pair], settings: PreferenceSettings) -> None:
    """Raise UserError for a pair that the loss cannot use.

    Such a pair lacks reference log-probabilities, as after edits to a stage's file, or has a label_smoothing of its own
    which the loss does not support.
    """
    for pair in pairs:
        if lacking := [name for name in settings.loss.names if name not in (pair.reference_logps or {})]:
            raise UserError(
                f"The pair {pair.id} lacks reference_logps of {' and '.join(lacking)}, which the loss needs. "
                "Add them with `with_reference`, or move the file of the pair's stage away and rerun, which scores it again."
            )
        if pair.label_smoothing and settings.loss_type != "sigmoid":
            raise UserError(
                f"The pair {pair.id} has a label_smoothing of {pair.label_smoothing}, which the loss {settings.loss_type} "
                "does not support: expected 0, or the loss_type sigmoid."
            )


def pair_logps(policy: Policy, batch: PairBatch, reads: Sequence[Read] = PAIR) -> Float[mx.array, "b k"]:
    """Summed log-probabilities of each pair's answers, in nats.

    The k columns are the answers in `reads`. The prompt is prefilled once per variant of the image. The answers are scored
    one after the other: in one batch the shorter would be padded to the longer.
    """
    variants = dict.fromkeys(variant for variant, _ in reads)
    prefixes = {one: policy.prefill(policy.image_features(batch.pictures(one)), batch.prompts) for one in variants}
    sides = dict(zip(get_args(Side), zip(*batch.responses, strict=True), strict=True))
    return mx.concatenate([policy.score(prefixes[one], [[ids] for ids in sides[side]]) for one, side in reads], axis=1)


def preference_loss(
    policy: Policy, settings: PreferenceSettings
) -> Callable[[PairBatch], tuple[mx.array, dict[str, mx.array]]]:
    """The loss on a batch of pairs, with its metrics.

        loss = mean of settings.loss + rpo_alpha NLL

    The NLL is the mean over all tokens of the chosen answers, as in TRL (`loss_type=["sigmoid", "sft"]`); Pang et al. 2024
    (arXiv 2404.19733, equation 1), who proposed it, take each answer's own mean. The metric `dpo_loss` is the first term,
    whatever the loss_type; `loss_at_start` is its value before the first update, logged unless that is ln 2.
    """
    loss = settings.loss
    begins = {} if loss.start == LN2 else {"loss_at_start": mx.array(loss.start)}

    def of_batch(batch: PairBatch) -> tuple[mx.array, dict[str, mx.array]]:
        logps = pair_logps(policy, batch, loss.reads)
        reference = mx.array([[row[name] for name in loss.names] for row in batch.reference_logps])
        rewards = {name: settings.beta * (logps[:, i] - reference[:, i]) for i, name in enumerate(loss.names)}
        lengths = np.array([[len(ids) for ids in pair] for pair in batch.responses])
        smoothing = mx.array([own or settings.label_smoothing for own in batch.label_smoothing])
        scored = Scored(rewards, mx.array(lengths, dtype=mx.float32), smoothing)
        preference, (chosen_length, rejected_length) = loss.values(scored).mean(), lengths.mean(axis=0)
        value = preference - settings.rpo_alpha * logps[:, 0].mean() / float(chosen_length)
        return value, reward_metrics(scored) | begins | {
            "dpo_loss": preference,
            "chosen_logps": logps[:, 0].mean(),
            "rejected_logps": logps[:, 1].mean(),
            "chosen_length": mx.array(chosen_length),
            "rejected_length": mx.array(rejected_length),
            "tokens": mx.array(batch.tokens),
        }

    return of_batch


def with_reference(policy: Policy, pairs: Sequence[Pair], reads: Sequence[Read] = PAIR, seed: int = 0) -> list[Pair]:
    """Score pairs under the current policy, as the reference.

    `seed` must be the training's, because it determines how images are damaged.
    """
    logps = np.array(pair_logps(policy, pair_batch(policy, pairs, seed), reads), dtype=np.float64)
    names = [name_of(read) for read in reads]
    return [
        replace(pair, reference_logps=dict(zip(names, row, strict=True)))
        for pair, row in zip(pairs, logps.tolist(), strict=True)
    ]


def train_on_pairs(
    policy: Policy,
    pairs: Sequence[Pair],
    settings: PreferenceSettings,
    folder: Path,
    seed: int,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    guard: LengthGuard | None = None,
) -> None:
    """Train a new round of LoRA on pairs.

    Resumes automatically; see `trainer.fit`. Raises `UserError` if there are no pairs, if the loss cannot use one of them
    (`require_usable`), and if the `guard` finds answers too short.
    """
    if not pairs:
        raise UserError("There are no pairs to train on: all answers were identical, cut off or filtered out.")
    require_usable(pairs, settings)  # now, not in the middle of the training
    too_little = short_training_warning(settings.loop(len(pairs)), len(pairs))
    if too_little:
        say(f"warning: {too_little}")
    policy.attach(settings.lora, seed=number_for(seed, "lora"))
    policy.checkpoint = settings.grad_checkpoint
    source = PairSource(policy, pairs, settings.batch_size, seed, guard)
    depends_on = {
        "beta": settings.beta,
        "rpo_alpha": settings.rpo_alpha,
        "seed": seed,
        "base": policy.base,
        "pairs": _digest(pairs),
        "lora": asdict(settings.lora),
    }
    # Newer settings enter the identity only if they differ from the defaults, so that older trainings can be resumed.
    more = ("loss_type", "label_smoothing", "noise")
    depends_on |= {name: vars(settings)[name] for name in more if vars(settings)[name] != getattr(PreferenceSettings, name)}
    watch = Watch()

    def each_row(row: dict[str, Any]) -> None:
        watch(row)
        if on_metrics is not None:
            on_metrics(row)
        if guard is not None:
            guard.check()

    fit(
        {"adapter": policy.model},
        preference_loss(policy, settings),
        source,
        settings.loop(len(pairs)),
        folder,
        on_metrics=each_row,
        depends_on=depends_on,
    )


class Watch:
    """Warns, once per sign, when the metrics look wrong."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.said: set[str] = set()

    def __call__(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        shorter = row.get("answer_length", 1.0) < SHORTER
        if len(self.rows) > 1 and len(self.rows) % WINDOW and not shorter:
            return
        for name, sign in warning_signs(self.rows).items():
            if name not in self.said:
                self.said.add(name)
                say(f"warning: {sign}")


def _digest(pairs: Sequence[Pair]) -> int:
    """A digest of the pairs that does not depend on the images' paths.

    Its text keeps the form from when a reference was two numbers without names, so that older trainings can be resumed.
    """

    def known(pair: Pair) -> str:
        logps = tuple(number for _, number in sorted((pair.reference_logps or {}).items()))
        values = vars(pair) | {"images": (), "reference_logps": logps}
        if pair.ended:  # as in files from before there were others
            del values["ended"]
        return f"Pair({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    return number_for(*map(known, pairs))


def reward_accuracy(policy: Policy, pairs: Sequence[Pair], beta: float, batch: int) -> dict[str, float]:
    """Accuracy and mean margin of rewards on held-out pairs.

    Accuracy is the share of pairs whose chosen answer has the higher reward.
    """
    require_usable(pairs, PreferenceSettings())
    margins: list[float] = []
    for start in range(0, len(pairs), batch):
        scored = pair_batch(policy, pairs[start : start + batch])
        reference = [[row["chosen"], row["rejected"]] for row in scored.reference_logps]
        change = np.array(pair_logps(policy, scored)) - np.array(reference)
        margins += (beta * (change[:, 0] - change[:, 1])).tolist()
    return {"pairs": len(margins), "accuracy": float(np.mean(np.array(margins) > 0)), "margin": float(np.mean(margins))}
