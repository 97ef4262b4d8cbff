"""Verifies a conversion by checksums.

The inverse table maps every written tensor back to its source.
"""

from pathlib import Path

import numpy as np

from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.io.tensors import Tensor, cast
from mlx_visalign.convert.layouts.table import Rule, Table
from mlx_visalign.convert.steps.conversion import Conversion, digest
from mlx_visalign.convert.steps.quantize import Quantization
from mlx_visalign.utils.errors import UserError

ROWS = 1024  # of a quantised matrix, compared per step
SPACING = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}  # between neighbouring numbers, relative to their size


def verify_checksums(conversion: Conversion, table: Table, folder: Path) -> str:
    """Compare the files in `folder` with the source.

    A tensor is equal if it has the sha256 of the source's tensor, cast to the type that was written. In a quantised matrix,
    no weight may differ from the source's by more than a step of its group plus the rounding of scale and bias. Returns a
    line for the summary; raises `UserError` naming the first tensor that differs.
    """
    source, written, back = conversion.source, open_source(folder), table.inverse
    found: set[str] = set()
    close = 0
    for tensor in written.tensors.values():
        if tensor.name.endswith((".scales", ".biases")):
            continue
        rule, name = back.find(tensor.name) or (None, "")
        if rule is None or name not in source.tensors:
            raise UserError(f"{folder}: {tensor.name} is not in the source. Convert again.")
        found.add(name)
        if conversion.quantization is not None and tensor.name in conversion.quantized:
            good = _is_close(source, source.tensors[name], written, tensor.name, conversion.quantization)
            close += 1
        else:
            good = _is_equal(source, source.tensors[name], written, tensor, rule)
        if not good:
            raise UserError(f"{folder}: {tensor.name} differs from {name} of the source. Is the disk damaged? Convert again.")
    if lost := sorted({move.source.name for move in conversion.moves} - found):
        raise UserError(f"{folder}: {lost[0]} of the source was not written. Convert again.")
    quantised = f", {close} quantised ones within a step of their group" if close else ""
    return f"{len(found) - close} of {len(found)} tensors have the source's checksum{quantised}"


def _is_equal(source: Source, origin: Tensor, written: Source, tensor: Tensor, rule: Rule) -> bool:
    back = rule.change.apply(written.read(tensor.name), origin.shape)
    expected, _ = cast(source.read(origin.name), origin.dtype, tensor.dtype)
    return digest(back) == digest(expected)


def _is_close(source: Source, origin: Tensor, written: Source, name: str, quantization: Quantization) -> bool:
    layer = name.removesuffix(".weight")
    parts = [written.read(part) for part in (name, f"{layer}.scales", f"{layer}.biases")]
    code = written.tensors[f"{layer}.scales"].dtype
    weights = source.read(origin.name)
    for start in range(0, len(weights), ROWS):
        rows = slice(start, start + ROWS)
        packed, scales, biases = (part[rows] for part in parts)
        expected, _ = cast(weights[rows], origin.dtype, "F32")
        error = np.abs(quantization.dequantize(packed, scales, biases, code) - expected)
        if not (error <= np.repeat(_bound(scales, biases, code, quantization.bits), quantization.group_size, axis=1)).all():
            return False
    return True


def _bound(scales: np.ndarray, biases: np.ndarray, code: str, bits: int) -> np.ndarray:
    """The largest error of a weight in each group: a step, if clipped, plus the rounding of scale and bias."""
    step, start = (np.abs(cast(part, code, "F32")[0]) for part in (scales, biases))
    return step + SPACING[code] * (2**bits * step + start)
