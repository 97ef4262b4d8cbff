"""One block of a Llama-like language model, so that training keeps little of it.

mlx-vlm's Llama and Qwen2 blocks compute the same and keep, for the backward pass, every array on the
way: 7 vectors of the model's width a token and 5 of the MLP's, and all attention scores. Here only what a product with a
weight made is kept, 4 and 2, and norms, activations and scores are computed a second time. That costs next to nothing: MLX
is lazy, and the products themselves, which no gradient asks for, are not.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

Array = mx.array
Attend = Callable[..., Array]  # scale, queries, keys, values and the past to [n, heads, l, d]
Rotate = Callable[[Any, Array, Array | int], Array]  # an attention, its queries or keys, and their positions


def by_offset(attention: Any, x: Float[mx.array, "n h l d"], positions: Array | int) -> Float[mx.array, "n h l d"]:
    """Queries or keys turned by their positions: that of each row's first token is given, the others follow it."""
    return attention.rope(x, offset=positions)


def run_block(
    block: Any,
    x: Float[mx.array, "n l e"],
    positions: Array | int,
    attend: Attend,
    past: Sequence[Array] = (),
    rotate: Rotate = by_offset,
) -> tuple[Float[mx.array, "n l e"], Float[mx.array, "n k l d"], Float[mx.array, "n k l d"]]:
    """h = x + W_o attention(norm(x)), y = h + W_down(silu(W_gate norm(h)) * W_up norm(h)); y and the new keys and values.

    `positions` go to `rotate`, `past` to `attend`.
    """
    attention, mlp = block.self_attn, block.mlp
    run = _runner(x)

    def ask(x: Array) -> Array:
        return rotate(attention, _split(attention.q_proj(block.input_layernorm(x)), attention.n_heads), positions)

    def gate_and_up(h: Array) -> tuple[Array, Array]:
        h = block.post_attention_layernorm(h)
        return mlp.gate_proj(h), mlp.up_proj(h)

    queries = run([block.input_layernorm, attention.q_proj], ask)(x)
    keys, values = keys_and_values(block, x, positions, rotate)
    mixed = run([], partial(attend, attention.scale))(queries, keys, values, *past)
    h = run([attention.o_proj], lambda x, mixed: x + attention.o_proj(_joined(mixed)))(x, mixed)
    gate, up = run([block.post_attention_layernorm, mlp.gate_proj, mlp.up_proj], gate_and_up)(h)
    y = run([mlp.down_proj], lambda h, gate, up: h + mlp.down_proj(nn.silu(gate) * up))(h, gate, up)
    return y, keys, values


def keys_and_values(
    block: Any, x: Float[mx.array, "n l e"], positions: Array | int, rotate: Rotate = by_offset
) -> tuple[Float[mx.array, "n k l d"], Float[mx.array, "n k l d"]]:
    """What later tokens see of these, and nothing more."""
    attention = block.self_attn

    def tell(x: Array) -> tuple[Array, Array]:
        x = block.input_layernorm(x)
        keys, values = (_split(projection(x), attention.n_kv_heads) for projection in (attention.k_proj, attention.v_proj))
        return rotate(attention, keys, positions), values

    return _runner(x)([block.input_layernorm, attention.k_proj, attention.v_proj], tell)(x)


def _runner(x: Float[mx.array, "n l e"]) -> Callable[[Sequence[nn.Module], Callable[..., Any]], Callable[..., Any]]:
    """How to run the parts of a block. A single token a row is sampled, not trained on, and `mx.checkpoint` takes time."""
    return _recomputed if x.shape[1] > 1 else lambda modules, function: function


def _recomputed(modules: Sequence[nn.Module], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which uses the weights of `modules`, but its backward pass keeps its arguments and nothing else.

    What is trained must be an argument of `mx.checkpoint`: gradients do not reach what a function only refers to.
    """
    if not modules:
        return mx.checkpoint(function)

    def with_weights(weights: list[Any], *arrays: Array) -> Any:
        for module, own in zip(modules, weights, strict=True):
            module.update(own)
        return function(*arrays)

    def call(*arrays: Array) -> Any:
        return mx.checkpoint(with_weights)([module.trainable_parameters() for module in modules], *arrays)

    return call


def _split(x: Float[mx.array, "n l w"], heads: int) -> Float[mx.array, "n h l d"]:
    rows, length, _ = x.shape
    return x.reshape(rows, length, heads, -1).swapaxes(1, 2)


def _joined(x: Float[mx.array, "n h l d"]) -> Float[mx.array, "n l w"]:
    rows, _, length, _ = x.shape
    return x.swapaxes(1, 2).reshape(rows, length, -1)
