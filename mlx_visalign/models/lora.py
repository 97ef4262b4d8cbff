"""LoRA on the language model, in rounds.

One adapter has all rounds, its rank the sum of theirs. Round n trains the last slice; earlier slices are frozen.
`adapter_at(0)` is the base model, `adapter_at(n - 1)` is the start of round n, which is its DPO reference. Nothing is ever
merged: a merge into 4-bit weights destroys small updates.
"""

import json
import math
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from mlx_visalign.models import families
from mlx_visalign.models.adapter_files import CONFIG, LINEARS, WEIGHTS, Slices
from mlx_visalign.utils.errors import NAMED, UserError, listed
from mlx_visalign.utils.files import replacing, write_atomically
from mlx_visalign.utils.schema import require, unknown


@dataclass(frozen=True)
class LoRASettings:
    """Rank and scale of one round.

    rank   columns of A (1 or more)
    scale  alpha / rank; every published recipe uses 2
    """

    rank: int = 16
    scale: float = 2.0

    def __post_init__(self) -> None:
        require(self, rank=(self.rank >= 1, "1 or more"), scale=(0 < self.scale < math.inf, "above 0, and finite"))


class RoundsLoRALinear(LoRALinear):
    """Linear layer with the LoRA of several rounds.

    y = W x + sum over rounds of scale * (x A) B. `past` has the earlier rounds, frozen, as (A, scale * B). It is kept in a
    private attribute because a list of frozen arrays among a module's parameters breaks `nn.value_and_grad` (mlx 0.32).
    """

    def __init__(self, linear: Any, rank: int, scale: float, key: mx.array, past: Slices):
        outputs, inputs = linear.weight.shape
        if hasattr(linear, "bits"):
            inputs = inputs * 32 // linear.bits
        super().__init__(inputs, outputs, r=rank, scale=scale)
        self.linear = linear
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(-bound, bound, (inputs, rank), key=key)
        self._past = past
        self.rounds_on = len(past) + 1

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        for a, b in self.rounds()[: self.rounds_on]:
            y = y + ((x @ a) @ b).astype(y.dtype)
        return y

    def rounds(self) -> Slices:
        """(A, scale * B) of every round, in float32."""
        return [*self._past, (self.lora_a, self.scale * self.lora_b)]


def attach(model: Any, settings: LoRASettings, key: mx.array) -> None:
    """Freeze the model and add one trainable round of LoRA.

    Every linear layer of the language model's blocks gets one; an existing adapter stays, frozen. Layers are named by full
    path: CLIP's tower has q_proj, k_proj and v_proj too, and must not be touched. A is drawn from
    U(-1/sqrt(in), 1/sqrt(in)), B is zero, so a fresh round changes nothing.
    """
    model.freeze()
    blocks = families.of(model).blocks
    targets = [(name, layer) for name, layer in model.named_modules() if name.startswith(blocks) and name.endswith(LINEARS)]
    if not targets:
        raise UserError("This model's language model has none of the expected linear layers: " + ", ".join(LINEARS))
    keys = mx.random.split(key, len(targets))
    adapted = []
    for (name, layer), layer_key in zip(sorted(targets, key=lambda item: item[0]), keys, strict=True):
        linear, past = (layer.linear, layer.rounds()) if isinstance(layer, RoundsLoRALinear) else (layer, [])
        lora = RoundsLoRALinear(linear, settings.rank, settings.scale, layer_key, past)
        lora.freeze()
        lora.unfreeze(recurse=False, keys=["lora_a", "lora_b"])
        adapted.append((name, lora))
    model.update_modules(tree_unflatten(adapted))


def adapters(model: Any) -> dict[str, RoundsLoRALinear]:
    """Every adapted layer by its full path."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, RoundsLoRALinear)}


@contextmanager
def adapter_at(model: Any, rounds: int) -> Iterator[None]:
    """Context with only the first `rounds` rounds active.

    0 is the base model.
    """
    layers = list(adapters(model).values())
    before = [layer.rounds_on for layer in layers]
    for layer in layers:
        layer.rounds_on = rounds
    try:
        yield
    finally:
        for layer, count in zip(layers, before, strict=True):
            layer.rounds_on = count


def save_adapter(model: Any, folder: Path, about: dict[str, Any]) -> None:
    """Write the model's adapter with all its rounds.

    `about`: additional fields for the config.
    """
    layers = adapters(model)
    tensors: dict[str, mx.array] = {}
    for name, layer in layers.items():
        slices = layer.rounds()
        tensors[f"{name}.lora_a"] = mx.concatenate([a for a, _ in slices], axis=1)
        tensors[f"{name}.lora_b"] = mx.concatenate([b for _, b in slices], axis=0)
    ranks = [a.shape[1] for a, _ in next(iter(layers.values())).rounds()]
    config = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": sum(ranks), "scale": 1.0, "dropout": 0.0, "keys": sorted(layers)},
        "round_ranks": ranks,
        **about,
    }
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    with replacing(folder / WEIGHTS) as unfinished:
        mx.save_safetensors(unfinished, tensors, metadata={"format": "mlx"})


def bind(model: Any, folder: Path, layers: dict[str, Slices], whole: bool) -> int:
    """Add all rounds from `read_adapter`, frozen, to the model.

    Returns the number of linear layers in the model. `whole`: refuse an adapter that leaves some of them out; otherwise they
    get a fresh round, which changes nothing.
    """
    for rounds in zip(*layers.values(), strict=True):
        attach(model, LoRASettings(rounds[0][0].shape[1], 1.0), mx.random.key(0))
        targets = adapters(model)
        _check_names(folder, layers.keys(), targets.keys(), whole)
        for name, (a, b) in zip(layers, rounds, strict=True):
            layer = targets[name]
            if (a.shape, b.shape) != (layer.lora_a.shape, layer.lora_b.shape):
                raise UserError(
                    f"{folder}: {name} has matrices of {a.shape} and {b.shape}, "
                    f"but this model takes {layer.lora_a.shape} and {layer.lora_b.shape}."
                )
            layer.lora_a, layer.lora_b = a, b
    model.freeze()
    return len(adapters(model))


def _check_names(folder: Path, names: Set[str], targets: Set[str], whole: bool) -> None:
    lost, bare = sorted(names - targets), sorted(targets - names)
    if lost:
        found = [unknown(name, targets) for name in lost[:NAMED]] + lost[NAMED:]
        raise UserError(listed(f"{folder}: the tensors of {len(lost)} of {len(names)} layers fit no layer", found))
    if whole and bare:
        raise UserError(listed(f"{folder}: {len(bare)} of the model's {len(targets)} linear layers have no tensors", bare))
