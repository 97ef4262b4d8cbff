"""Executes a plan, one tensor at a time.

Each tensor is read, checked, cast, reshaped and, if asked for, quantised; none is kept in memory.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mlx_visalign.convert.io.source import Source
from mlx_visalign.convert.io.tensors import DTYPES, FLOATS, Loss, Tensor, cast
from mlx_visalign.convert.layouts.table import Move, Plan
from mlx_visalign.convert.steps.quantize import Quantization
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.formatting import counted

# The bits of a float's exponent: all set mean infinite, or not a number.
EXPONENTS = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}
AT_ONCE = 1 << 20  # elements checked per step


class Conversion:
    """The tensors that a plan makes of a source.

    They are made one at a time; fingerprint and cast losses are collected on the way.

    dtype      the float type to write; None keeps each tensor's own
    tensors    what to write, in the order of the plan
    quantized  names of the quantised matrices
    unfit      names of those left as they are, since the group size does not divide their rows
    """

    def __init__(self, source: Source, plan: Plan, dtype: str | None = None, quantization: Quantization | None = None):
        self.source, self.dtype, self.quantization = source, dtype, quantization
        self.moves = plan.moves
        self.tensors: list[Tensor] = []
        self.quantized: set[str] = set()
        self.unfit: set[str] = set()
        self._of: dict[str, Move] = {}  # which move makes a tensor to write
        for move in plan.moves:
            self._add(move)
        self._made: dict[str, np.ndarray] = {}  # of the last move, the parts not yet requested
        self._losses: dict[str, Loss] = {}
        self._digests: dict[str, str] = {}

    def _add(self, move: Move) -> None:
        if move.source.dtype not in FLOATS:
            raise UserError(f"{move.source.name} has the type {move.source.dtype}, expected floats. Is this a quantised model?")
        target = self._cast(move)
        parts = [target]
        if self.quantization is not None and self.quantization.meant_for(target):
            fits = self.quantization.fits(target)
            (self.quantized if fits else self.unfit).add(target.name)
            parts = self.quantization.parts(target) if fits else parts
        self.tensors += parts
        self._of |= {part.name: move for part in parts}

    def _cast(self, move: Move) -> Tensor:
        return replace(move.target, dtype=self.dtype or move.target.dtype)

    def produce(self, tensor: Tensor) -> np.ndarray:
        """The array of one of `tensors`.

        Raises `UserError` if the source is not finite, or the cast would overflow.
        """
        if tensor.name not in self._made:
            self._made.clear()
            self._made = self._make(self._of[tensor.name])
        return self._made.pop(tensor.name)

    def _make(self, move: Move) -> dict[str, np.ndarray]:
        array, target = self.source.read(move.source.name), self._cast(move)
        if target.name not in self._digests:  # a quantised matrix is made twice: its parts are not adjacent in the file
            _check_finite(array, move.source, self.source)
            self._digests[target.name] = digest(array)
        array, loss = cast(array, move.source.dtype, target.dtype)
        if loss.overflowed:
            raise UserError(
                f"{self.source.folder}: {counted(loss.overflowed, 'number')} of {move.source.name} would be infinite in this "
                "type, and the model would not work. Choose --dtype bfloat16 or float32."
            )
        self._losses[target.name] = loss
        array = move.rule.change.apply(array, target.shape)
        if self.quantization is None or target.name not in self.quantized:
            return {target.name: array}
        parts = self.quantization.quantize(array, target.dtype)
        return {part.name: made for part, made in zip(self.quantization.parts(target), parts, strict=True)}

    @property
    def loss(self) -> Loss:
        """Overflows and underflows in all tensors made so far."""
        return sum(self._losses.values(), Loss())

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the source's weights.

        The same for every layout, file format and sharding. All tensors must have been made.
        """
        return fingerprint({move.target.name: (move.source, self._digests[move.target.name]) for move in self.moves})


def fingerprint(tensors: Mapping[str, tuple[Tensor, str]]) -> str:
    """sha256 over one line per tensor, sorted by name.

    A line has the tensor's name here, its type and shape in the source, and its `digest`.
    """
    lines = [f"{name} {tensor.dtype} {tensor.shape} {checksum}\n" for name, (tensor, checksum) in sorted(tensors.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest(array: np.ndarray) -> str:
    """sha256 of an array's bytes in row-major order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _check_finite(array: np.ndarray, tensor: Tensor, source: Source) -> None:
    exponent = EXPONENTS[tensor.dtype]
    bits = array.reshape(-1).view(f"<u{DTYPES[tensor.dtype].itemsize}")
    for start in range(0, bits.size, AT_ONCE):
        if ((bits[start : start + AT_ONCE] & exponent) == exponent).any():
            raise UserError(
                f"{source.folder}: {tensor.name} holds numbers that are not finite, so the model would not work: "
                "the file is damaged, or its training diverged."
            )
