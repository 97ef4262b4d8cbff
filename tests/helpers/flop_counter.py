"""FLOPs of a computation, counted in the graph that MLX builds for it. Nothing is evaluated, so no weight is ever there.

One multiply-add is 2 FLOP. Counted are matrix products, attention's two among them (with their masked part, which is
computed too), and convolutions, forward and backward. Not counted is what works on each number or along a row: norms,
softmax, RoPE, activations, losses, the optimiser. At 7B that is well below one per cent.

MLX merges equal nodes of a graph before it shows it. So weights must not be equal: fresh layers are not, for each draws
its own random numbers, lazily. Compiling must be off (`mx.disable_compile`). MLX shows no graph with `mx.checkpoint` in it;
what that computes a second time is counted by itself.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from understudy import Call

from mlx_visalign.inference.prefix_cache import Prefix, extend, prefill
from mlx_visalign.models import families
from mlx_visalign.models.clip import CLIP
from mlx_visalign.models.decoder import Decoder, decoder_of
from mlx_visalign.models.lora import adapter_at

PRODUCTS = re.compile(r"mm|matmul|attention|conv|custom|compiled", re.IGNORECASE)


def count(function: Callable[[], Any]) -> int:
    """FLOPs of the arrays that `function` returns. Raises ValueError where the graph holds products of a kind not known."""
    with mock.patch.object(mx, "checkpoint", lambda function: function):
        return _in_graph(function)


def count_gradient(function: Callable[[], Any]) -> int:
    """As `count`, of arrays among which are gradients: with what `mx.checkpoint` computes for them a second time."""
    calls: list[tuple[Callable[..., Any], Any]] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append((function, tree_map(lambda array: array.shape, arguments, is_leaf=lambda x: isinstance(x, mx.array))))
            return function(*arguments)

        return call

    with mock.patch.object(mx, "checkpoint", noted):
        total = _in_graph(function)
    times = Counter(_kind(*call) for call in calls)
    return total + sum(times[kind] * _second_time(*call) for kind, call in {_kind(*call): call for call in calls}.items())


def _kind(function: Callable[..., Any], shapes: Any) -> str:
    """What is alike in all layers."""
    code = function.func if isinstance(function, partial) else function
    return f"{code.__qualname__} {shapes}"


def _second_time(function: Callable[..., Any], shapes: Any) -> int:
    """What the gradient of a function needs beside the products that are its own: what it would find were it all kept."""

    def outputs_and_gradients() -> tuple[list[mx.array], list[mx.array]]:
        arguments = tree_map(
            mx.random.normal, shapes, is_leaf=lambda tree: isinstance(tree, tuple) and isinstance(tree[0], int)
        )
        names, leaves = zip(*tree_flatten(arguments), strict=True)

        def flat(*leaves: mx.array) -> list[mx.array]:
            outputs = function(*tree_unflatten(list(zip(names, leaves, strict=True))))
            return [outputs] if isinstance(outputs, mx.array) else list(outputs)

        cotangents = [mx.random.normal(output.shape) for output in flat(*leaves)]
        return mx.vjp(flat, list(leaves), cotangents)

    outputs, gradients = (lambda: outputs_and_gradients()[0]), (lambda: outputs_and_gradients()[1])
    return _in_graph(outputs) + _in_graph(gradients) - _in_graph(outputs_and_gradients)


def _in_graph(function: Callable[[], Any]) -> int:
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

    def _first_blocks(self, number: int) -> Decoder:
        whole = decoder_of(self.model)
        return replace(whole, layers=whole.layers[:number])

    def _blocks(self, rows: int, tokens: int, past: int, rounds: int) -> int:
        """All blocks, which are alike: `tokens` new ones in each row after `past`, with so many rounds of the adapter.

        All but the last one: of a prompt it makes keys, values and one state.
        """
        text = self.model.language_model.config
        embeds, mask = mx.random.normal((rows, tokens, text.hidden_size)), np.ones((rows, past or tokens), dtype=bool)
        kv = (rows, text.num_key_value_heads, past, text.hidden_size // text.num_attention_heads)

        def read(blocks: int) -> tuple[mx.array, Any]:
            prefix = prefill(self._first_blocks(blocks), embeds, mask)
            return prefix.state, prefix.kv

        def go_on() -> mx.array:
            prefix = Prefix([(mx.random.normal(kv), mx.random.normal(kv))], mask, embeds[:, 0])
            ids = mx.zeros((rows, tokens), mx.int32)
            return extend(self._first_blocks(1), prefix.branch(1), ids, np.ones((rows, tokens), dtype=bool))[0]

        with adapter_at(self.model, rounds):
            if past:
                return text.num_hidden_layers * count(go_on)
            last, two = (count(partial(read, blocks)) for blocks in (1, 2))
            return last + (text.num_hidden_layers - 1) * (two - last)

    def _head(self, *rows: int) -> int:
        head, width = decoder_of(self.model).head, self.model.language_model.config.hidden_size
        return count(lambda: head(mx.random.normal((*rows, width))))

    def _projector(self, images: int) -> int:
        vision = self.model.config.vision_config
        features = (images, (vision.image_size // vision.patch_size) ** 2, vision.hidden_size)
        return count(lambda: families.of(self.model).project(self.model, mx.random.normal(features)))

    def _tower(self, images: int) -> int:
        size = self.model.config.vision_config.image_size
        return count(lambda: families.of(self.model).states(self.model, mx.random.normal((images, size, size, 3))))

    def _clip_image(self, images: int) -> int:
        size = self.clip.config.vision.image_size
        return count(lambda: self.clip.encode_image(mx.random.normal((images, size, size, 3))))

    def _clip_text(self, rows: int, columns: int) -> int:
        return count(lambda: self.clip.encode_text(mx.zeros((rows, columns), mx.int32)))
