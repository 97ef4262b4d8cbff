"""FLOPs of a computation, counted in the graph that MLX builds for it. Nothing is evaluated, so no weight is ever there.

One multiply-add is 2 FLOP. Counted are matrix products, attention's two among them (with their masked part, which is
computed too), and convolutions, forward and backward. Not counted is what works on each number or along a row: norms,
softmax, RoPE, activations, losses, the optimiser. At 7B that is well below one per cent.

MLX merges equal nodes of a graph before it shows it. So weights must not be equal: fresh layers are not, for each draws
its own random numbers, lazily. Compiling must be off (`mx.disable_compile`), and layers cannot be checkpointed.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from understudy import Call

from mlx_visalign import vlm
from mlx_visalign.fold import Prefix, extend, prefill
from mlx_visalign.lora import adapter_at
from mlx_visalign.models.clip import CLIP

PRODUCTS = re.compile(r"mm|matmul|attention|conv|custom|compiled", re.IGNORECASE)


def count(function: Callable[[], Any]) -> int:
    """FLOPs of the arrays that `function` returns. Raises ValueError where the graph holds products of a kind not known."""
    total = 0

    def see(record: dict[str, Any]) -> None:
        nonlocal total
        if record["type"] == "primitive":
            total += _flops(record["name"], *([shape for _, shape, _ in record[side]] for side in ("inputs", "outputs")))

    with mx.stream(mx.cpu):  # on a GPU attention is one node, on a CPU its products are visible
        mx.export_function(see, lambda _: [array for _, array in tree_flatten(function())], mx.zeros(1))
    return total


def _flops(name: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> int:
    if name in ("Matmul", "AddMM"):
        return 2 * inputs[0][-1] * math.prod(outputs[0])
    if name == "Convolution":
        return 2 * math.prod(inputs[1][1:]) * math.prod(outputs[0])
    if PRODUCTS.search(name):
        raise ValueError(f"the graph holds {name}, whose FLOPs are not known here")
    return 0


def purpose(call: Call) -> str:
    """What a noted call is for: prefill (with the image), sampling, reading of answers that are there, or judging."""
    part, *sizes = call
    if part.startswith("clip"):
        return "judging"
    if part == "head":
        return "sampling" if len(sizes) == 1 else "reading"
    if part != "blocks" or sizes[2] == 0:
        return "prefill"
    return "sampling" if sizes[1] == 1 else "reading"


@dataclass(frozen=True)
class Prices:
    """What each call that an understudy noted costs a large model, counted in the graph of the large model's own part."""

    model: Any
    clip: CLIP

    def of(self, calls: Mapping[Call, int]) -> Counter[str]:
        """FLOPs of all these calls, by what they are for."""
        total: Counter[str] = Counter()
        for call, times in calls.items():
            total[purpose(call)] += times * self.one(call)
        return total

    def one(self, call: Call) -> int:
        if call not in self._known:
            part, *sizes = call
            self._known[call] = getattr(self, f"_{part}")(*sizes)
        return self._known[call]

    @cached_property
    def _known(self) -> dict[Call, int]:
        return {}

    @cached_property
    def _first_block(self) -> vlm.Decoder:
        whole = vlm.decoder(self.model)
        return replace(whole, layers=whole.layers[:1])

    def _blocks(self, rows: int, tokens: int, past: int, rounds: int) -> int:
        """All blocks, which are alike: `tokens` new ones in each row after `past`, with so many rounds of the adapter."""
        text = self.model.language_model.config
        embeds, mask = mx.random.normal((rows, tokens, text.hidden_size)), np.ones((rows, past or tokens), dtype=bool)
        kv = (rows, text.num_key_value_heads, past, text.hidden_size // text.num_attention_heads)

        def run() -> mx.array:
            if past == 0:
                return prefill(self._first_block, embeds, mask).state
            prefix = Prefix([(mx.random.normal(kv), mx.random.normal(kv))], mask, embeds[:, 0])
            ids = mx.zeros((rows, tokens), mx.int32)
            return extend(self._first_block, prefix.branch(1), ids, np.ones((rows, tokens), dtype=bool))[0]

        with adapter_at(self.model, rounds):
            return text.num_hidden_layers * count(run)

    def _head(self, *rows: int) -> int:
        head, width = vlm.decoder(self.model).head, self.model.language_model.config.hidden_size
        return count(lambda: head(mx.random.normal((*rows, width))))

    def _projector(self, images: int) -> int:
        vision = self.model.config.vision_config
        features = (images, (vision.image_size // vision.patch_size) ** 2, vision.hidden_size)
        return count(lambda: vlm.project(self.model, mx.random.normal(features)))

    def _tower(self, images: int) -> int:
        size = self.model.config.vision_config.image_size
        return count(lambda: vlm.tower_states(self.model, mx.random.normal((images, size, size, 3))))

    def _clip_image(self, images: int) -> int:
        size = self.clip.config.vision.image_size
        return count(lambda: self.clip.encode_image(mx.random.normal((images, size, size, 3))))

    def _clip_text(self, rows: int, columns: int) -> int:
        return count(lambda: self.clip.encode_text(mx.zeros((rows, columns), mx.int32)))
