"""Memory-saving forward pass of a Llama-like block.

mlx-vlm's Llama and Qwen2 blocks compute the same but keep every intermediate array for the backward pass: per token 7 vectors
of the model's width and 5 of the MLP's, and all attention scores. Here only the outputs of matrix products with weights are
kept, 4 and 2; norms, activations and scores are recomputed. That costs next to nothing: MLX is lazy, so the matrix products,
whose outputs no gradient needs again, are not recomputed.
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
    """Queries or keys with RoPE applied.

    `positions`: of each row's first token; the other tokens follow it one by one.
    """
    return attention.rope(x, offset=positions)


def run_block(
    block: Any,
    x: Float[mx.array, "n l e"],
    positions: Array | int,
    attend: Attend,
    past: Sequence[Array] = (),
    rotate: Rotate = by_offset,
) -> tuple[Float[mx.array, "n l e"], Float[mx.array, "n k l d"], Float[mx.array, "n k l d"]]:
    """A block's output y and its new keys and values.

    h = x + W_o attention(norm(x)), y = h + W_down(silu(W_gate norm(h)) * W_up norm(h)).
    `positions` are passed to `rotate`, `past` to `attend`.
    """
    attention, mlp = block.self_attn, block.mlp
    run = _runner(x)
    queries = run([block.input_layernorm, attention.q_proj], partial(_queries, block, positions, rotate))(x)
    keys, values = keys_and_values(block, x, positions, rotate)
    mixed = run([], partial(attend, attention.scale))(queries, keys, values, *past)
    h = run([attention.o_proj], lambda x, mixed: x + attention.o_proj(_joined(mixed)))(x, mixed)
    gate, up = run([block.post_attention_layernorm, mlp.gate_proj, mlp.up_proj], partial(_gate_and_up, block))(h)
    y = run([mlp.down_proj], lambda h, gate, up: h + mlp.down_proj(nn.silu(gate) * up))(h, gate, up)
    return y, keys, values


def keys_and_values(
    block: Any, x: Float[mx.array, "n l e"], positions: Array | int, rotate: Rotate = by_offset
) -> tuple[Float[mx.array, "n k l d"], Float[mx.array, "n k l d"]]:
    """A block's keys and values alone, without its output."""
    modules = [block.input_layernorm, block.self_attn.k_proj, block.self_attn.v_proj]
    return _runner(x)(modules, partial(_keys_and_values, block, positions, rotate))(x)


# The parts are functions of the module, not of `run_block`: the tests check the types of each function that is made, which
# costs more than a tiny model's whole layer.


def _queries(block: Any, positions: Array | int, rotate: Rotate, x: Array) -> Array:
    attention = block.self_attn
    return rotate(attention, _split(attention.q_proj(block.input_layernorm(x)), attention.n_heads), positions)


def _keys_and_values(block: Any, positions: Array | int, rotate: Rotate, x: Array) -> tuple[Array, Array]:
    attention, x = block.self_attn, block.input_layernorm(x)
    keys, values = (_split(projection(x), attention.n_kv_heads) for projection in (attention.k_proj, attention.v_proj))
    return rotate(attention, keys, positions), values


def _gate_and_up(block: Any, h: Array) -> tuple[Array, Array]:
    h = block.post_attention_layernorm(h)
    return block.mlp.gate_proj(h), block.mlp.up_proj(h)


def _runner(x: Float[mx.array, "n l e"]) -> Callable[[Sequence[nn.Module], Callable[..., Any]], Callable[..., Any]]:
    """Runs the parts of a block, with recomputation if rows have several tokens.

    Rows of one token occur in sampling, which needs no gradient and would only lose time to `mx.checkpoint`.
    """
    return _recomputed if x.shape[1] > 1 else lambda modules, function: function


def _recomputed(modules: Sequence[nn.Module], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose backward pass keeps only the arguments. It uses the weights of `modules`."""
    return partial(_checkpointed, modules, function) if modules else mx.checkpoint(function)


def _checkpointed(modules: Sequence[nn.Module], function: Callable[..., Any], *arrays: Array) -> Any:
    """Trained weights must be arguments of `mx.checkpoint`: arrays that a function merely closes over get no gradient."""
    run = mx.checkpoint(partial(_with_weights, modules, function))
    return run([module.trainable_parameters() for module in modules], *arrays)


def _with_weights(modules: Sequence[nn.Module], function: Callable[..., Any], weights: list[Any], *arrays: Array) -> Any:
    for module, own in zip(modules, weights, strict=True):
        module.update(own)
    return function(*arrays)


def _split(x: Float[mx.array, "n l w"], heads: int) -> Float[mx.array, "n h l d"]:
    rows, length, _ = x.shape
    return x.reshape(rows, length, heads, -1).swapaxes(1, 2)


def _joined(x: Float[mx.array, "n h l d"]) -> Float[mx.array, "n l w"]:
    rows, _, length, _ = x.shape
    return x.swapaxes(1, 2).reshape(rows, length, -1)
