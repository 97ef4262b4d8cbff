"""The training loop that all methods share.

Rerun after any interruption, it resumes from the newest checkpoint, and the final weights are bit-identical to those of an
uninterrupted run. No random state is stored for that: batches and losses derive their keys from (seed, step).
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_visalign.data.training_log import METRICS, append_row, cut_back
from mlx_visalign.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mlx_visalign.training.config import TrainSettings, schedule_factor
from mlx_visalign.utils.console import progress, say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import make_folder
from mlx_visalign.utils.provenance import as_json
from mlx_visalign.utils.signals import stop_waits

Loss = Callable[[Any], tuple[mx.array, dict[str, mx.array]]]
"""Batch -> (scalar loss, scalar metrics), closing over the models. A metric named `tokens` is summed, others averaged."""


@runtime_checkable
class Source(Protocol):
    """A source of batches, such as pairs or rollouts."""

    def next(self) -> Any:
        """The next batch, which may depend on the current weights."""

    def observe(self, metrics: dict[str, Any]) -> None:
        """Receive the metrics of each update, before they are logged.

        A source may react to them, for example end a rollout early, and add to them, always under the same names.
        """

    def state(self) -> dict[str, Any]:
        """The position, as JSON values.

        After `restore(state)`, `next` returns the same batches as it would have without an interruption.
        """

    def restore(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Named(Protocol):
    """A batch with record ids, named in NaN errors."""

    ids: Sequence[str]


def fit(
    trained: Mapping[str, nn.Module],
    loss: Loss,
    source: Source,
    settings: TrainSettings,
    folder: Path,
    *,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    learning_rates: Mapping[str, float] = {},
    depends_on: Mapping[str, Any] = {},
) -> None:
    """Train modules in place, resuming from the newest checkpoint.

    The trainable parameters of each module in `trained` are a group with its own AdamW. `folder` gets `checkpoints/` and
    `metrics.jsonl`. `learning_rates` overrides the peak rate of some groups. `depends_on` is everything else that
    determines the result (beta, a digest of the data; JSON values): a checkpoint with other values is refused. If the
    training in `folder` is finished, its weights are loaded and nothing else happens.

    UserError: the loss or a gradient is not finite (no weight is changed), checkpoints have other settings, the disk is
    full. Ctrl-C (SIGTERM, a closed terminal) finishes the update, writes a checkpoint and raises KeyboardInterrupt.
    """
    identity = _identity(settings, learning_rates, depends_on)
    groups = _Groups(trained, settings, learning_rates)
    step = _resume(folder, identity, groups, source)
    update = _Update(groups, loss, source, settings)
    with progress("training", settings.iters, done=step) as bar, stop_waits() as stop:
        while step < settings.iters:
            row = update(step)
            step += 1
            source.observe(row)
            append_row(folder / METRICS, row)
            try:
                if on_metrics is not None:
                    on_metrics(row)
            except KeyboardInterrupt:  # raised by a notebook; the update is complete, so save it first
                stop.set()
            bar.advance(1, _note(row))
            if stop.is_set() or step % settings.save_every == 0 or step == settings.iters:
                save_checkpoint(folder / "checkpoints", step, groups.trees(), source.state(), identity)
            stop.end()


def _identity(settings: TrainSettings, learning_rates: Mapping[str, float], depends_on: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine the final weights."""
    identity = {**asdict(settings), "learning_rates": dict(learning_rates), **depends_on}
    del identity["save_every"]
    return as_json(identity)


def _resume(folder: Path, identity: dict[str, Any], groups: "_Groups", source: Source) -> int:
    """Restore the newest checkpoint, if there is one; return the number of updates made."""
    checkpoint = load_checkpoint(folder / "checkpoints", identity)
    step, finished = 0, False
    if checkpoint is not None:
        groups.restore(checkpoint)
        source.restore(checkpoint.source)
        step = checkpoint.step
        finished = step == identity["iters"]
        say(f"training: {'already done' if finished else 'resuming'} at update {step} of {identity['iters']}")
    make_folder(folder)
    cut_back(folder / METRICS, step, finished=finished)
    return step


class _Groups:
    """Parameter groups: each one's module, optimiser and peak learning rate."""

    def __init__(self, trained: Mapping[str, nn.Module], settings: TrainSettings, learning_rates: Mapping[str, float]):
        self.modules = dict(trained)
        self.peaks = dict.fromkeys(trained, settings.learning_rate) | dict(learning_rates)
        self.optimizers = {name: _adamw(name, module, settings.weight_decay) for name, module in trained.items()}
        self.joint = nn.Module()  # nn.value_and_grad takes one module: this one holds them all
        self.joint.groups = self.modules

    def update(self, gradients: dict[str, Any], factor: float) -> None:
        """One AdamW step of every group.

        The learning rate is `factor` times the group's peak. Evaluated at once, so that the graph does not grow.
        """
        for name, module in self.modules.items():
            optimizer = self.optimizers[name]
            optimizer.learning_rate = self.peaks[name] * factor
            optimizer.update(module, gradients["groups"][name])
        mx.eval(self.trees())

    def trees(self) -> dict[str, Any]:
        """Weights and optimiser state of each group."""
        weights = {name: module.trainable_parameters() for name, module in self.modules.items()}
        return weights | {f"{name}.optimizer": optimizer.state for name, optimizer in self.optimizers.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        trees = self.trees()
        saved_shapes = {name: _shapes(tree) for name, tree in checkpoint.arrays.items()}
        if saved_shapes != {name: _shapes(tree) for name, tree in trees.items()}:
            raise UserError(
                f"The checkpoint of update {checkpoint.step} does not match the weights to be trained (another rank, other "
                "layers or another model). Use the model it was saved with, or another folder."
            )
        for name, module in self.modules.items():
            module.update(tree_unflatten(checkpoint.arrays[name]))
            self.optimizers[name].state = tree_unflatten(checkpoint.arrays[f"{name}.optimizer"])


def _adamw(group: str, module: nn.Module, weight_decay: float) -> optim.AdamW:
    """AdamW as in torch: betas (0.9, 0.999), eps 1e-8, bias-corrected. Its state is float32, as the weights are."""
    parameters = module.trainable_parameters()
    flat = dict(tree_flatten(parameters))
    if not flat:
        raise UserError(f"There is nothing to train in {group}: all of its weights are frozen.")
    for name, array in flat.items():
        if array.dtype != mx.float32:
            raise UserError(f"Trained weights must be float32, but {group}.{name} is {array.dtype}. Cast it first.")
    optimizer = optim.AdamW(learning_rate=0.0, weight_decay=weight_decay, bias_correction=True)
    optimizer.init(parameters)
    return optimizer


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in dict(tree_flatten(tree)).items()}


class _Update:
    """One optimiser update: batches, gradients, NaN guard, clipping, step, and its row of metrics."""

    def __init__(self, groups: _Groups, loss: Loss, source: Source, settings: TrainSettings):
        self.groups, self.source, self.settings = groups, source, settings
        self.gradients_of = nn.value_and_grad(groups.joint, loss)

    def __call__(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        gradients, metrics = self._mean_gradients(step)
        gradients, norm = optim.clip_grad_norm(gradients, self.settings.max_grad_norm)
        factor = schedule_factor(self.settings, step)
        self.groups.update(gradients, factor)
        seconds = time.perf_counter() - started
        row = {"iteration": step + 1, **_mean_metrics(metrics)}
        row |= {"learning_rate": self.settings.learning_rate * factor, "grad_norm": norm.item()}
        if "tokens" in row:
            row["tokens_per_second"] = row["tokens"] / seconds
        row |= {"iterations_per_second": 1 / seconds}
        return row | {"peak_memory": mx.get_peak_memory() / 1e9, "active_memory": mx.get_active_memory() / 1e9}

    def _mean_gradients(self, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The gradients averaged over the accumulated batches, and each batch's loss and metrics."""
        total: dict[str, Any] = {}
        metrics = []
        for _ in range(self.settings.grad_accumulation_steps):
            batch = self.source.next()
            (loss, values), gradients = self.gradients_of(batch)
            total = tree_map(mx.add, total, gradients) if total else gradients
            del gradients  # or their buffers would stay alive besides the sum's
            for layer in _last_layer_first(total):  # MLX's own order keeps more in memory at once
                mx.eval(layer)
            mx.eval(loss, values)
            _, norm = optim.clip_grad_norm(total, math.inf)  # lazy: only the norm is used, so only the norm is computed
            _require_finite(loss.item(), norm.item(), batch, step)
            metrics.append({"train_loss": loss.item()} | {name: value.item() for name, value in values.items()})
        return tree_map(lambda gradient: gradient / len(metrics), total), metrics


def _last_layer_first(gradients: dict[str, Any]) -> list[list[mx.array]]:
    """Gradients grouped by layer, in the order of the backward pass."""
    layers: dict[str, list[mx.array]] = {}
    for name, gradient in dict(tree_flatten(gradients)).items():
        number = re.search(r"\.\d+\.", name)
        layers.setdefault(name[: number.end()] if number else "", []).append(gradient)
    return list(layers.values())[::-1]


def _mean_metrics(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the batches of an update; the sum for `tokens`, which is a count."""
    sums = {name: sum(batch[name] for batch in batches) for name in batches[0]}
    return {name: total if name == "tokens" else total / len(batches) for name, total in sums.items()}


def _require_finite(loss: float, norm: float, batch: Any, step: int) -> None:
    """Stop before AdamW spreads a NaN to every weight, and name the records it came from."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    culprits = f" on the records {', '.join(batch.ids)}" if isinstance(batch, Named) else ""
    raise UserError(
        f"Update {step + 1}: the loss is {loss} and the gradient norm {norm}{culprits}. No weight was changed. "
        "Check these records first; if they are fine, lower the learning rate."
    )


def _note(row: dict[str, Any]) -> str:
    speed = f", {row['tokens_per_second']:.0f} tokens/s" if "tokens_per_second" in row else ""
    return f"loss {row['train_loss']:.4f}{speed}"
