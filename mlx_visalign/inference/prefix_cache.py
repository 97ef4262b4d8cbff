"""Shared-prefix KV cache: one prefill, any number of continuations.

In LLaVA the prefix (576 image tokens and more) is most of every sequence, and chosen and rejected answers, sampled
candidates and the questions about one image all share it. The cache is exact: results equal those of separate full forward
passes. Everything is right-padded. A row's padding comes after its real tokens, so causality hides it within the row and a
mask hides it from later pieces; each row has its own positions, so every token stands where it would in a batch of one.

All continuations of a prompt share a single copy of its keys and values (models/attention.py).
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
    """The cached keys and values of b prompts.

    `kv` has one (keys, values) pair per layer, [b, heads, p, d] each.
    """

    kv: KeysValues
    mask: np.ndarray  # [b, p], true where a token is real
    state: Float[mx.array, "b e"]  # the final hidden state of each row's last real token
    positions: Positions | None = None  # None: tokens stand at 0, 1, 2, ...

    @property
    def following(self) -> Integer[np.ndarray, " b"]:
        """The position of the first token after each prompt."""
        return self.mask.sum(axis=1) if self.positions is None else self.positions.following

    def branch(self, copies: int) -> "Continuations":
        """Start `copies` continuations of every prompt.

        Rows of the same prompt are adjacent.
        """
        owners = np.repeat(np.arange(len(self.mask)), copies)
        return Continuations(self, owners, mask=np.zeros((len(owners), 0), dtype=bool))


@dataclass(frozen=True)
class Continuations:
    """n continuations, in the order of their prompts.

    They have only their own keys and values; the prefix is shared.
    """

    prefix: Prefix
    owners: np.ndarray  # [n], the row of the prefix that each one continues, non-decreasing
    mask: np.ndarray  # [n, s], true where a token of the continuation is real
    kv: KeysValues = field(default_factory=list)  # empty until the first `extend`

    def __post_init__(self) -> None:
        if (np.diff(self.owners) < 0).any():  # attention would give rows the wrong prompts
            raise ValueError(f"continuations must be in the order of their prompts, got {self.owners.tolist()}")

    @property
    def state(self) -> Float[mx.array, "n e"]:
        """The prefix's final state, repeated for every continuation.

        It predicts the first token.
        """
        if len(set(self.counts)) == 1:  # deterministic: the gradient of repeat sums in a fixed order
            return mx.repeat(self.prefix.state, self.counts[0], axis=0)
        return self.prefix.state[mx.array(self.owners)]

    @property
    def counts(self) -> list[int]:
        """How many continuations each prompt has."""
        return np.bincount(self.owners, minlength=len(self.prefix.mask)).tolist()

    def pick(self, rows: Integer[np.ndarray, " m"]) -> "Continuations":
        """Select continuations, with repetition if wanted.

        Repeats fork a continuation; omissions drop finished ones.
        """
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

    `checkpoint` keeps only the inputs and these keys and values for the backward pass. They are returned rather than stored
    from inside the function: side effects of a recomputed function get no gradient.
    """
    forward = partial(_forward, layer, positions, attend, checkpoint, rotate)
    run = mx.checkpoint(forward) if checkpoint else forward
    return run(layer.trainable_parameters() if checkpoint else None, x, *(array for pair in past for array in pair))


def _forward(
    layer: Any,
    positions: Array | int,
    attend: Callable[..., Array],
    checkpoint: bool,
    rotate: Rotate,
    parameters: Any,
    x: Array,
    *past: Array,
) -> tuple[Array, Array, Array]:
    if checkpoint:
        layer.update(parameters)
    return run_block(layer, x, positions, attend, past, rotate)


def _past_mask(real: Bool[np.ndarray, "n p"]) -> Bool[mx.array, "n 1 1 p"] | None:
    """Mask of the visible past; None: all of it."""
    return None if real.all() else mx.array(real[:, None, None, :])


def _causal_mask(length: int) -> Bool[mx.array, "l l"] | None:
    """Causal mask among the new tokens; None for a single one."""
    return None if length == 1 else mx.array(np.tril(np.ones((length, length), dtype=bool)))


def prefill(
    decoder: Decoder,
    embeds: Float[mx.array, "b p e"],
    mask: Bool[np.ndarray, "b p"],
    checkpoint: bool = False,
    positions: Positions | None = None,
) -> Prefix:
    """Read b right-padded prompts into a `Prefix`.

    `checkpoint` recomputes each layer in the backward pass to save memory.
    """
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
    # The last layer needs all keys and values, but only one state per prompt.
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
    """Read l more right-padded tokens on every continuation.

    Returns their final hidden states and the extended continuations.
    """
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
    """Right-pad rows of token ids.

    Returns one array and a mask that is true where a token is real.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int32)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    return mx.array(ids), mask
