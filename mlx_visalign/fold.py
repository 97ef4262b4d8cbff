"""The fold: read image and prompt once, then run any number of continuations over the kept keys and values.

In LLaVA the prefix (576 image tokens and more) is most of every sequence, and chosen and rejected answers, sampled
candidates and the questions about one image all share it. The fold is exact: it computes what separate full forwards
compute (tests/test_fold.py). Everything is right-padded; a row's padding comes after its real tokens, so causality hides
it within the row, a mask hides it from later pieces, and per-row RoPE offsets keep every position what it would be alone.

Layers are called unchanged with `layer(x, mask, cache)`; the cache contract is `offset` and `update_and_fetch`, shared by
mlx-lm's and mlx-vlm's Llama, Qwen2 and Mistral blocks.
"""

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Bool, Float, Integer

from mlx_visalign.vlm import Decoder

Array = mx.array
KeysValues = list[tuple[mx.array, mx.array]]
Past = tuple[mx.array, mx.array, np.ndarray]  # keys, values, and which row of them each row of the batch continues


@dataclass(frozen=True)
class Prefix:
    """What is left of b prompts after reading them: one (keys, values) pair per layer, [b, heads, p, d] each."""

    kv: KeysValues
    mask: np.ndarray  # [b, p], true where a token is real
    state: Float[mx.array, "b e"]  # the final hidden state of each row's last real token

    def branch(self, copies: int) -> "Branches":
        """Start `copies` continuations of every row; the rows of one prompt stay next to each other."""
        owners = np.repeat(np.arange(len(self.mask)), copies)
        return Branches(self, owners, mask=np.zeros((len(owners), 0), dtype=bool))


@dataclass(frozen=True)
class Branches:
    """n continuations. They hold their own keys and values only; the prefix exists once."""

    prefix: Prefix
    owners: np.ndarray  # [n], the row of the prefix that each one continues
    mask: np.ndarray  # [n, s], true where a token of the continuation is real
    kv: KeysValues = field(default_factory=list)  # empty until something was read

    @property
    def state(self) -> Float[mx.array, "n e"]:
        """The prefix's last state for every continuation: it predicts the first token."""
        return _expanded(self.prefix.state, self.owners)

    def pick(self, rows: Integer[np.ndarray, " m"]) -> "Branches":
        """Some of the continuations, any of them more than once: forks, or those that are not finished."""
        index = mx.array(rows)
        return Branches(self.prefix, self.owners[rows], self.mask[rows], [(k[index], v[index]) for k, v in self.kv])


def _expanded(rows: Array, owners: Integer[np.ndarray, " n"]) -> Array:
    """The rows that `owners` names. Where every row has as many neighbours, `repeat`: its gradient sums in a fixed order."""
    if len(owners) % len(rows) == 0 and (owners == np.repeat(np.arange(len(rows)), len(owners) // len(rows))).all():
        return rows if len(owners) == len(rows) else mx.repeat(rows, len(owners) // len(rows), axis=0)
    return rows[mx.array(owners)]


class _LayerCache:
    """What a layer sees of the past, and what it leaves behind.

    The new keys and values are read off as attributes right after the call and *returned* by the function around it:
    a cache that only records them as a side effect gives gradients that are wrong by 97 % under layer checkpointing.
    """

    def __init__(self, past: list[Past], offset: mx.array | int):
        self.past, self.offset = past, offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        # A prefix is expanded here, for this layer alone, and dropped as soon as the layer is done.
        all_keys = [_expanded(k, owners) for k, _, owners in self.past]
        all_values = [_expanded(v, owners) for _, v, owners in self.past]
        return mx.concatenate([*all_keys, keys], axis=2), mx.concatenate([*all_values, values], axis=2)


def _run_layer(
    layer: Any, x: Array, mask: Any, past: list[Past], offset: Array | int, checkpoint: bool
) -> tuple[Array, Array, Array]:
    """One block: its output and its new keys and values."""
    owners = [rows for _, _, rows in past]

    def forward(parameters: Any, x: Array, *flat: Array) -> tuple[Array, Array, Array]:
        if checkpoint:
            layer.update(parameters)
        cache = _LayerCache(list(zip(flat[::2], flat[1::2], owners, strict=True)), offset)
        y = layer(x, mask, cache)
        return y, cache.keys, cache.values

    flat = [array for k, v, _ in past for array in (k, v)]
    run = mx.checkpoint(forward) if checkpoint else forward
    return run(layer.trainable_parameters() if checkpoint else None, x, *flat)


def _attention_mask(past: np.ndarray, length: int) -> Bool[mx.array, "n 1 l k"] | str | None:
    """Every new token sees the real tokens of its past and, among the new ones, those up to itself."""
    if past.all():  # MLX aligns a causal mask to the end of the keys
        return None if length == 1 else "causal"
    rows = len(past)
    seen = np.broadcast_to(past[:, None, None, :], (rows, 1, length, past.shape[1]))
    new = np.broadcast_to(np.tril(np.ones((length, length), dtype=bool)), (rows, 1, length, length))
    return mx.array(np.concatenate([seen, new], axis=-1))


def prefill(
    decoder: Decoder, embeds: Float[mx.array, "b p e"], mask: Bool[np.ndarray, "b p"], checkpoint: bool = False
) -> Prefix:
    """Read b right-padded prompts. `checkpoint` recomputes each layer in the backward pass instead of keeping it."""
    x, kv = embeds, []
    attention = _attention_mask(mask[:, :0], embeds.shape[1])
    for layer in decoder.layers:
        x, keys, values = _run_layer(layer, x, attention, [], 0, checkpoint)
        kv.append((keys, values))
    last = x[mx.arange(len(mask)), mx.array(mask.sum(axis=1) - 1)]
    return Prefix(kv, mask, decoder.norm(last))


def extend(
    decoder: Decoder,
    branches: Branches,
    ids: Integer[mx.array, "n l"],
    mask: Bool[np.ndarray, "n l"],
    checkpoint: bool = False,
) -> tuple[Float[mx.array, "n l e"], Branches]:
    """Read l more right-padded tokens on every continuation; return their final hidden states and the longer branches."""
    prefix, owners, own_rows = branches.prefix, branches.owners, np.arange(len(branches.mask))
    past_mask = np.concatenate([prefix.mask[owners], branches.mask], axis=1)
    offset = mx.array(past_mask.sum(axis=1).astype(np.int32))
    attention = _attention_mask(past_mask, ids.shape[1])
    x, kv = decoder.embed(ids), []
    for index, layer in enumerate(decoder.layers):
        past = [(*prefix.kv[index], owners)] + [(*own, own_rows) for own in branches.kv[index : index + 1]]
        x, keys, values = _run_layer(layer, x, attention, past, offset, checkpoint)
        kv.append(_joined(branches.kv[index : index + 1], keys, values))
    return decoder.norm(x), Branches(prefix, owners, np.concatenate([branches.mask, mask], axis=1), kv)


def _joined(own: KeysValues, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    return (
        mx.concatenate([*(k for k, _ in own), keys], axis=2),
        mx.concatenate([*(v for _, v in own), values], axis=2),
    )


def right_pad(rows: list[list[int]], value: int = 0) -> tuple[Integer[mx.array, "n l"], Bool[np.ndarray, "n l"]]:
    """Rows of different lengths as one array, and the mask that is true where a token is real."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int32)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    return mx.array(ids), mask
