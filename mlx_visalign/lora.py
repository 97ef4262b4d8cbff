"""LoRA on the language model, in rounds: one adapter whose rank is the concatenation of its rounds.

Round n trains the last slice; the slices before it are frozen. Switching the adapter off takes a round: `adapter_at(0)`
is the base, `adapter_at(n - 1)` is what round n started from, which is its DPO reference. Nothing is ever merged: a merge
into 4-bit weights destroys small updates.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from mlx_visalign.errors import UserError

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
Slices = list[tuple[mx.array, mx.array]]
_LAYER = re.compile(r"language_model\.model\.layers\.\d+\.")


@dataclass(frozen=True)
class LoRASettings:
    """rank: columns of A in one round (1 and up). scale: alpha / rank; every published recipe uses 2."""

    rank: int = 16
    scale: float = 2.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.scale < math.inf:
            raise UserError(f"Expected a LoRA rank of at least 1 and a scale above 0, got {self}.")


class RoundsLoRALinear(LoRALinear):
    """y = W x + sum over rounds of scale * (x A) B. `past` holds the rounds before this one, frozen, scale folded into B.

    Private, for a list of frozen arrays among a module's parameters breaks `nn.value_and_grad` (mlx 0.32).
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
    """Freeze the whole model and put a trainable round of LoRA on every linear layer of the language model's blocks.

    A model that has an adapter already keeps it, frozen, and gets one round more. Layers are named by full path: CLIP's
    tower has q_proj, k_proj and v_proj too, and must not be touched. A is drawn from U(-1/sqrt(in), 1/sqrt(in)), B is
    zero, so a fresh round changes nothing.
    """
    model.freeze()
    targets = [(name, layer) for name, layer in model.named_modules() if _LAYER.match(name) and name.endswith(LINEARS)]
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
    """Within the block the model has its first `rounds` rounds only: 0 is the base model."""
    layers = list(adapters(model).values())
    before = [layer.rounds_on for layer in layers]
    for layer in layers:
        layer.rounds_on = rounds
    try:
        yield
    finally:
        for layer, count in zip(layers, before, strict=True):
            layer.rounds_on = count
