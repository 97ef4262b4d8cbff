"""Attention over shared prompts.

A prompt attends to itself; tokens of a continuation attend to all tokens before them. Rows that continue the same prompt
share one copy of its keys and values.
"""

from functools import partial, reduce

import mlx.core as mx
import numpy as np
from jaxtyping import Float

Masks = list[mx.array | None]  # visible keys of each piece, broadcast to [n, heads, l, k]; None: all of them
BLOCK = 128  # queries of a prompt per attention call


def causal_attention(
    scale: float, queries: Float[mx.array, "n h l d"], keys: Float[mx.array, "n k l d"], values: Float[mx.array, "n k l d"]
) -> Float[mx.array, "n h l d"]:
    """Causal attention in blocks of queries.

    softmax(scale * Q K^T) V, where each block reads only the keys up to its end: half as many scores.
    """
    ends = [*range(BLOCK, queries.shape[2], BLOCK), queries.shape[2]]
    attend = partial(mx.fast.scaled_dot_product_attention, scale=scale, mask="causal")  # aligned to the end of the keys
    blocks = zip(mx.split(queries, ends[:-1], axis=2), ends, strict=True)
    return mx.concatenate([attend(block, keys[:, :, :end], values[:, :, :end]) for block, end in blocks], axis=2)


def attention(
    counts: list[int],
    masks: Masks,
    scale: float,
    queries: Float[mx.array, "n h l d"],
    keys: Float[mx.array, "n k l d"],
    values: Float[mx.array, "n k l d"],
    *past: mx.array,
) -> Float[mx.array, "n h l d"]:
    """Attention over `past` and new keys and values.

    softmax(scale * Q K^T) V. `past` has keys and values of the prompts, then of the rows if any; `masks` has one for each
    such pair and one for the new keys. `counts`: how many rows continue each prompt; rows are in the prompts' order.
    """
    all_keys, all_values = [*past[::2], keys], [*past[1::2], values]
    if set(counts) == {1}:  # nothing is shared
        mask = _whole_mask(masks, queries.shape[2], all_keys)
        keys, values = mx.concatenate(all_keys, axis=2), mx.concatenate(all_values, axis=2)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    rows = [counts, *[[1] * len(queries)] * (len(all_keys) - 1)]  # of each piece: how many rows share its keys
    pieces = [_product(scale * queries, keys.swapaxes(-1, -2), same) for keys, same in zip(all_keys, rows, strict=True)]
    seen = [piece if mask is None else mx.where(mask, piece, -mx.inf) for piece, mask in zip(pieces, masks, strict=True)]
    weights = mx.softmax(mx.concatenate(seen, axis=-1), axis=-1, precise=True)
    ends = np.cumsum([keys.shape[2] for keys in all_keys])[:-1].tolist()
    parts = zip(mx.split(weights, ends, axis=-1), all_values, rows, strict=True)
    return reduce(mx.add, (_product(*part) for part in parts))


def _whole_mask(masks: Masks, length: int, keys: list[mx.array]) -> mx.array | str | None:
    """The masks of all pieces of keys as one array, or in MLX's short form if the complete past is visible."""
    if all(mask is None for mask in masks[:-1]):
        return None if length == 1 else "causal"
    shapes = [(len(piece), 1, length, piece.shape[2]) for piece in keys]
    pieces = [
        mx.broadcast_to(mx.array(True) if mask is None else mask, shape) for mask, shape in zip(masks, shapes, strict=True)
    ]
    return mx.concatenate(pieces, axis=-1)


def _product(
    rows: Float[mx.array, "n h l i"], matrices: Float[mx.array, "b k i j"], counts: list[int]
) -> Float[mx.array, "n h l j"]:
    """The first `counts[0]` rows times the first matrices, the next rows times the second, and so on, without copies."""
    if len(set(counts)) == 1:
        return _shared(rows, matrices)
    parts = mx.split(rows, np.cumsum(counts)[:-1].tolist())
    shared = [_shared(part, matrices[row : row + 1]) for row, part in enumerate(parts) if len(part)]
    return mx.concatenate(shared)


def _shared(rows: Float[mx.array, "n h l i"], matrices: Float[mx.array, "b k i j"]) -> Float[mx.array, "n h l j"]:
    """One product per matrix, for the n / b rows and h / k heads of each that share it."""
    n, h, length, _ = rows.shape
    b, k = matrices.shape[:2]
    each = h // k * length  # rows of a continuation that share a matrix
    if n == b:
        return (rows.reshape(b, k, each, -1) @ matrices).reshape(n, h, length, -1)
    grouped = rows.reshape(b, n // b, k, each, -1).swapaxes(1, 2).reshape(b, k, n // b * each, -1)
    return (grouped @ matrices).reshape(b, k, n // b, each, -1).swapaxes(1, 2).reshape(n, h, length, -1)
