"""The fold: read image and prompt once, then run any number of continuations over the kept keys and values.

In LLaVA the prefix (576 image tokens and more) is most of every sequence, and chosen and rejected answers, sampled
candidates and the questions about one image all share it. The fold is exact: it computes what separate full forwards
compute (tested). Everything is right-padded; a row's padding comes after its real tokens, so causality hides
it within the row, a mask hides it from later pieces, and positions of its own keep every token where it would be alone.

All rows of a prompt look at the one copy there is of its keys and values (attention.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Bool, Float, Integer

from mlx_visalign.models.attention import attention, causal_attention
from mlx_visalign.models.decoder import Decoder, Positions
from mlx_visalign.models.decoder_block import Rotate, keys_and_values, run_block

Array = mx.array
KeysValues = list[tuple[mx.array, mx.array]]


@dataclass(frozen=True)
class Prefix:
    """What is left of b prompts after reading them: one (keys, values) pair per layer, [b, heads, p, d] each."""

    kv: KeysValues
    mask: np.ndarray  # [b, p], true where a token is real
    state: Float[mx.array, "b e"]  # the final hidden state of each row's last real token
    positions: Positions | None = None  # None: tokens stand at 0, 1, 2, ...

    @property
    def following(self) -> Integer[np.ndarray, " b"]:
        """The position of the first token after each prompt."""
        return self.mask.sum(axis=1) if self.positions is None else self.positions.following

    def branch(self, copies: int) -> "Continuations":
        """Start `copies` continuations of every row; the rows of one prompt stay next to each other."""
        owners = np.repeat(np.arange(len(self.mask)), copies)
        return Continuations(self, owners, mask=np.zeros((len(owners), 0), dtype=bool))


@dataclass(frozen=True)
class Continuations:
    """n continuations, in the order of their prompts. They hold their own keys and values only; the prefix exists once."""

    prefix: Prefix
    owners: np.ndarray  # [n], the row of the prefix that each one continues, never falling
    mask: np.ndarray  # [n, s], true where a token of the continuation is real
    kv: KeysValues = field(default_factory=list)  # empty until something was read

    def __post_init__(self) -> None:
        if (np.diff(self.owners) < 0).any():  # attention would give rows the wrong prompts
            raise ValueError(f"continuations must stand in the order of their prompts, not {self.owners.tolist()}")

    @property
    def state(self) -> Float[mx.array, "n e"]:
        """The prefix's last state for every continuation: it predicts the first token."""
        if len(set(self.counts)) == 1:  # the gradient of a repetition sums in a fixed order
            return mx.repeat(self.prefix.state, self.counts[0], axis=0)
        return self.prefix.state[mx.array(self.owners)]

    @property
    def counts(self) -> list[int]:
        """How many continuations each prompt has."""
        return np.bincount(self.owners, minlength=len(self.prefix.mask)).tolist()

    def pick(self, rows: Integer[np.ndarray, " m"]) -> "Continuations":
        """Some of the continuations, any of them more than once: forks, or those that are not finished."""
        index = mx.array(rows)
        return Continuations(self.prefix, self.owners[rows], self.mask[rows], [(k[index], v[index]) for k, v in self.kv])


def _run_layer(
    layer: Any,
    x: Array,
    positions: Array | int,
    attend: Callable[..., Array],
    past: KeysValues,
    checkpoint: bool,
    rotate: Rotate,
) -> tuple[Array, Array, Array]:
    """One block: its output and its new keys and values. `attend` is called with scale, queries, keys, values and the past.

    `checkpoint` keeps nothing for the backward pass but what goes in and these keys and values. They are returned, not
    recorded: what a function that is run a second time leaves elsewhere has no gradient.
    """

    def forward(parameters: Any, x: Array, *past: Array) -> tuple[Array, Array, Array]:
        if checkpoint:
            layer.update(parameters)
        return run_block(layer, x, positions, attend, past, rotate)

    run = mx.checkpoint(forward) if checkpoint else forward
    return run(layer.trainable_parameters() if checkpoint else None, x, *(array for pair in past for array in pair))


def _past_mask(real: Bool[np.ndarray, "n p"]) -> Bool[mx.array, "n 1 1 p"] | None:
    """Which of the past may be seen; None: all of it."""
    return None if real.all() else mx.array(real[:, None, None, :])


def _causal_mask(length: int) -> Bool[mx.array, "l l"] | None:
    """Which of the new tokens may be seen by each of them: those up to itself."""
    return None if length == 1 else mx.array(np.tril(np.ones((length, length), dtype=bool)))


def prefill(
    decoder: Decoder,
    embeds: Float[mx.array, "b p e"],
    mask: Bool[np.ndarray, "b p"],
    checkpoint: bool = False,
    positions: Positions | None = None,
) -> Prefix:
    """Read b right-padded prompts. `checkpoint` recomputes each layer in the backward pass instead of keeping it."""
    *layers, last = decoder.layers
    ends = mask.sum(axis=1) - 1
    everywhere: Array | int = 0
    at_ends = mx.array(ends.astype(np.int32))
    if positions is not None:
        everywhere = positions.tokens
        at_ends = everywhere[..., mx.arange(len(mask)), at_ends][..., None]
    x, kv = embeds, []
    for layer in layers:
        x, keys, values = _run_layer(layer, x, everywhere, causal_attention, [], checkpoint, decoder.rotate)
        kv.append((keys, values))
    # Of the last layer all keys and values are wanted, but one state a prompt.
    keys, values = keys_and_values(last, x, everywhere, decoder.rotate)
    before = _past_mask(np.arange(mask.shape[1]) < ends[:, None])
    x = x[mx.arange(len(mask)), mx.array(ends)][:, None]
    attend = partial(attention, [1] * len(mask), [before, None])
    state, _, _ = _run_layer(last, x, at_ends, attend, [(keys, values)], checkpoint, decoder.rotate)
    return Prefix([*kv, (keys, values)], mask, decoder.norm(state[:, 0]), positions)


def extend(
    decoder: Decoder,
    branches: Continuations,
    ids: Integer[mx.array, "n l"],
    mask: Bool[np.ndarray, "n l"],
    checkpoint: bool = False,
) -> tuple[Float[mx.array, "n l e"], Continuations]:
    """Read l more right-padded tokens on every continuation; return their final hidden states and the longer branches."""
    prompts, length = branches.prefix.mask[branches.owners], ids.shape[1]
    first = branches.prefix.following[branches.owners] + branches.mask.sum(axis=1)
    positions = mx.array(first.astype(np.int32))
    pasts = [prompts, branches.mask] if branches.kv else [prompts]
    attend = partial(attention, branches.counts, [*map(_past_mask, pasts), _causal_mask(length)])
    x, kv = decoder.embed(ids), []
    for index, layer in enumerate(decoder.layers):
        own = branches.kv[index : index + 1]
        x, keys, values = _run_layer(layer, x, positions, attend, [branches.prefix.kv[index], *own], checkpoint, decoder.rotate)
        kv.append(_joined(own, keys, values))
    mask = np.concatenate([branches.mask, mask], axis=1)
    return decoder.norm(x), Continuations(branches.prefix, branches.owners, mask, kv)


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
