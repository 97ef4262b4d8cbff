"""Weights from several files, and tensors computed when read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from mlx_visalign.convert.io.source import Source
from mlx_visalign.convert.io.tensors import DTYPES, Entry, Tensor, cast
from mlx_visalign.convert.steps.lora_deltas import Update

AT_ONCE = 1 << 22  # weights merged per step, in float32
ROWS_AT_ONCE = 1 << 10


@dataclass(frozen=True)
class Made:
    """A tensor computed on demand.

    `make` returns its array, of its type and shape, and the same on every call.
    """

    tensor: Tensor
    make: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Assembled(Source):
    """A source in which some tensors are computed.

    `made` overrides stored tensors of the same name.
    """

    made: dict[str, Made] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        stored = {name: entry.tensor for name, entry in self.entries.items()}
        return stored | {name: made.tensor for name, made in self.made.items()}

    def read(self, name: str) -> np.ndarray:
        return self.made[name].make() if name in self.made else self.entries[name].read()


def entry_named(entry: Entry, name: str) -> Entry:
    """The same tensor under another name."""
    return replace(entry, tensor=replace(entry.tensor, name=name))


def renamed(source: Source, names: Mapping[str, str]) -> Assembled:
    """A source with its tensors renamed.

    `names` maps old names to new ones; tensors that it does not list are left out.
    """
    made = {new: Made(replace(source.tensors[old], name=new), partial(source.read, old)) for old, new in names.items()}
    return Assembled(source.folder, {}, source.metadata, made)


def rows(entry: Entry, start: int, stop: int, name: str) -> Entry:
    """Rows `start` to `stop` of a tensor, named `name`."""
    offset = entry.offset + start * entry.strides[0] * DTYPES[entry.tensor.dtype].itemsize
    shape = (stop - start, *entry.tensor.shape[1:])
    return Entry(replace(entry.tensor, name=name, shape=shape), entry.path, offset, entry.strides)


def merged(source: Source, name: str, update: Update) -> Made:
    """A matrix with a LoRA update merged in.

    Computed in float32, a block of rows at a time.
    """

    def make() -> np.ndarray:
        weights, dtype = source.read(name), source.tensors[name].dtype
        a, b = update.matrices()
        sums = np.empty(weights.shape, np.float32)
        step = max(1, AT_ONCE // weights.shape[1])
        for start in range(0, len(sums), step):
            piece = slice(start, start + step)
            sums[piece] = cast(weights[piece], dtype, "F32")[0] + b[:, piece].T @ a.T
        return sums

    return Made(Tensor(name, "F32", source.tensors[name].shape), make)


def with_rows(source: Source, name: str, count: int, more: Entry | None) -> Made:
    """A matrix extended to `count` rows.

    The new rows are those of `more`; without it, each is the mean of the existing rows.
    """
    tensor = source.tensors[name]
    return Made(replace(tensor, shape=(count, *tensor.shape[1:])), partial(_with_rows, source, name, count, more))


def _with_rows(source: Source, name: str, count: int, more: Entry | None) -> np.ndarray:
    array, dtype = source.read(name), source.tensors[name].dtype
    result = np.empty((count, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    result[len(array) :] = _mean_row(array, dtype) if more is None else more.read()
    return result


def _mean_row(array: np.ndarray, dtype: str) -> np.ndarray:
    """The mean of the rows, summed in float64 and rounded to the matrix's type."""
    starts = range(0, len(array), ROWS_AT_ONCE)
    sums = (cast(array[start : start + ROWS_AT_ONCE], dtype, "F64")[0].sum(axis=0) for start in starts)
    return cast(sum(sums) / len(array), "F64", dtype)[0]
