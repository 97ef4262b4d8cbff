"""Tensors in files, and casts between float types.

A tensor has a name, a type, a shape and a place in a file. `Entry.read` maps its bytes, which leave memory with the array,
so no model is ever held in memory.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_visalign.utils.errors import UserError

# safetensors' names of types. NumPy has no bfloat16, so its bits are used (uint16).
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
INFINITY_BITS = {"F16": 0x7C00, "BF16": 0x7F80}  # without the sign

MAX_DIMENSIONS = 8  # more than any weight has, and fewer than NumPy supports
CAST_AT_ONCE = 1 << 18  # elements per step: temporary copies take a MB each


@dataclass(frozen=True)
class Tensor:
    """A tensor's name, type (a key of DTYPES) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    `offset` is in bytes from the file's start, `strides` are in elements; both have been checked to stay within the file.
    """

    tensor: Tensor
    path: Path
    offset: int
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The array, mapped from the file and read-only.

        BF16 comes as uint16 bits. Raises `UserError` if the file is gone.
        """
        dtype, shape = DTYPES[self.tensor.dtype], self.tensor.shape
        if self.tensor.count == 0:
            return np.empty(shape, dtype)
        try:
            flat = np.memmap(self.path, dtype, "r", self.offset, extent(shape, self.strides))
        except (OSError, ValueError) as error:  # ValueError: the file is shorter than when its header was read
            raise UserError(f"{self.path} can no longer be read ({error}).") from None
        strides = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a row-major tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Number of elements from the first to the last, inclusive.

    0 for an empty tensor.
    """
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def check_tensor(tensor: Tensor, path: Path) -> None:
    """Refuse unsupported types and absurd shapes.

    No weight has such shapes, and NumPy could not handle them.
    """
    name = repr(tensor.name[:80])  # a name may hold anything
    if tensor.dtype not in DTYPES:
        raise UserError(f"{path}: {name} has the type {tensor.dtype}; supported are {', '.join(DTYPES)}.")
    elements = math.prod(size for size in tensor.shape if size)  # an empty tensor may still have one huge dimension
    if len(tensor.shape) > MAX_DIMENSIONS or elements >= 1 << 48:
        raise UserError(f"{path}: {name} has a shape that no weight has ({len(tensor.shape)} dimensions).")


@dataclass(frozen=True)
class Loss:
    """Overflows and underflows of a cast.

    Counts finite numbers that became infinite, and numbers that became zero.
    """

    overflowed: int = 0
    flushed: int = 0

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.overflowed + other.overflowed, self.flushed + other.flushed)


def cast(array: np.ndarray, from_code: str, to_code: str) -> tuple[np.ndarray, Loss]:
    """Cast an array to another float type.

    Rounds to nearest (ties to even), in pieces, so that only `array` and the result are in memory. Returns the result and
    its `Loss`. Raises `ValueError` unless both types are floats.
    """
    if not {from_code, to_code} <= set(FLOATS):
        raise ValueError(f"cast is for floats, not {from_code} to {to_code}")
    if from_code == to_code:
        return array, Loss()
    result, loss = np.empty(array.size, DTYPES[to_code]), Loss()
    flat = array.reshape(-1)
    for start in range(0, array.size, CAST_AT_ONCE):
        piece = slice(start, start + CAST_AT_ONCE)
        result[piece], lost = _cast_piece(flat[piece], from_code, to_code)
        loss += lost
    return result.reshape(array.shape), loss


def _cast_piece(values: np.ndarray, from_code: str, to_code: str) -> tuple[np.ndarray, Loss]:
    wide = (values.astype(np.uint32) << 16).view(np.float32) if from_code == "BF16" else values
    with np.errstate(all="ignore"):  # losses are counted below
        result = _to_bfloat16(wide.astype(np.float32, copy=False)) if to_code == "BF16" else wide.astype(DTYPES[to_code])
    before, after = _infinite_and_zeros(values, from_code), _infinite_and_zeros(result, to_code)
    return result, Loss(after[0] - before[0], after[1] - before[1])


def _infinite_and_zeros(values: np.ndarray, code: str) -> tuple[int, int]:
    """Numbers of infinite and of zero elements; 16-bit floats by their bits, which is much faster."""
    if code in INFINITY_BITS:
        magnitudes = values.view(np.uint16) & 0x7FFF
        infinite = magnitudes == INFINITY_BITS[code]
    else:
        magnitudes, infinite = values, np.isinf(values)
    return int(np.count_nonzero(infinite)), values.size - int(np.count_nonzero(magnitudes))


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to the nearest (ties to even)."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)  # rounding could turn a NaN into infinity
