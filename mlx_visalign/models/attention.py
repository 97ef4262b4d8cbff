"""Attention of a block: of a prompt to itself, and of tokens to all that came before them, where rows share a prompt."""

from functools import partial, reduce

import mlx.core as mx
import numpy as np
from jaxtyping import Float

Masks = list[mx.array | None]  # what may be seen of each piece of keys, to be broadcast to [n, heads, l, k]; None: all of it
BLOCK = 128  # queries of a prompt that are compared with its keys at a time


def causal_attention(
    scale: float, queries: Float[mx.array, "n h l d"], keys: Float[mx.array, "n k l d"], values: Float[mx.array, "n k l d"]
) -> Float[mx.array, "n h l d"]:
    """softmax(scale * Q K^T) V in blocks of queries, each of which sees the keys up to itself: half as many scores."""
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
    """The same over `past` too: keys and values of prompts, then of the rows if any; a mask for each pair and the new one.

    `counts` says how many rows continue each prompt; they stand in the prompts' order.
    """
    all_keys, all_values = [*past[::2], keys], [*past[1::2], values]
    if set(counts) == {1}:  # nothing is shared
        mask = _whole_mask(masks, queries.shape[2], all_keys)
        keys, values = mx.concatenate(all_keys, axis=2), mx.concatenate(all_values, axis=2)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    rows = [counts, *[[1] * len(queries)] * (len(all_keys) - 1)]  # that meet the same keys
    pieces = [_product(scale * queries, keys.swapaxes(-1, -2), same) for keys, same in zip(all_keys, rows, strict=True)]
    seen = [piece if mask is None else mx.where(mask, piece, -mx.inf) for piece, mask in zip(pieces, masks, strict=True)]
    weights = mx.softmax(mx.concatenate(seen, axis=-1), axis=-1, precise=True)
    ends = np.cumsum([keys.shape[2] for keys in all_keys])[:-1].tolist()
    parts = zip(mx.split(weights, ends, axis=-1), all_values, rows, strict=True)
    return reduce(mx.add, (_product(*part) for part in parts))


def _whole_mask(masks: Masks, length: int, keys: list[mx.array]) -> mx.array | str | None:
    """The masks of all pieces of keys as one, and where all of the past may be seen as MLX names it."""
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
    """The heads of the first `counts[0]` rows times the first matrices, and so on. No matrix is copied."""
    if len(set(counts)) == 1:
        return _shared(rows, matrices)
    parts = mx.split(rows, np.cumsum(counts)[:-1].tolist())
    shared = [_shared(part, matrices[row : row + 1]) for row, part in enumerate(parts) if len(part)]
    return mx.concatenate(shared)


def _shared(rows: Float[mx.array, "n h l i"], matrices: Float[mx.array, "b k i j"]) -> Float[mx.array, "n h l j"]:
    """n / b rows and h / k heads of each meet the same matrix: they are the rows of one product with it."""
    n, h, length, _ = rows.shape
    b, k = matrices.shape[:2]
    each = h // k * length  # rows of a continuation that meet the same matrix
    if n == b:
        return (rows.reshape(b, k, each, -1) @ matrices).reshape(n, h, length, -1)
    grouped = rows.reshape(b, n // b, k, each, -1).swapaxes(1, 2).reshape(b, k, n // b * each, -1)
    return (grouped @ matrices).reshape(b, k, n // b, each, -1).swapaxes(1, 2).reshape(n, h, length, -1)
