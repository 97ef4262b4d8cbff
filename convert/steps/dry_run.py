"""Describes a conversion from headers alone, for `--dry-run`."""

from collections import Counter
from typing import Any

from mlx_visalign.convert.io.folder import split
from mlx_visalign.convert.io.source import Source
from mlx_visalign.convert.io.tensors import Tensor
from mlx_visalign.convert.layouts.table import CHANNELS_LAST, Plan, Rule
from mlx_visalign.convert.steps.conversion import Conversion

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTERPRETER = 150e6  # bytes of Python, NumPy and MLX themselves
SPEED, QUANTIZING = 300e6, 100e6  # source bytes per second, on two slow cores; a laptop is faster


def describe(source: Source, layout: str, plan: Plan, conversion: Conversion) -> dict[str, Any]:
    """The plan's lines by name, in display order."""
    largest = max(max(move.source.nbytes, move.target.nbytes) for move in plan.moves)
    size = sum(tensor.nbytes for tensor in source.tensors.values())
    written = conversion.tensors
    figures = {
        "source": f"{source.folder}: {_amount(list(source.tensors.values()))}, layout {layout}",
        "renames": [_line(rule, count) for rule, count in Counter(move.rule for move in plan.moves).items()],
        "dropped": [f"{tensor.name}: {rule.why}" for tensor, rule in plan.dropped] or "none",
        "output": f"{_amount(written)}, in {len(split(written))} file{'s' * (len(split(written)) > 1)}",
    }
    if conversion.quantization is not None:
        figures["quantised"] = quantised(conversion)
    speed = SPEED if conversion.quantization is None else QUANTIZING
    return figures | {
        "peak memory": f"at most {gigabytes(2 * largest + INTERPRETER)} (the largest tensor has {gigabytes(largest)})",
        "time": f"about {max(1, round(size / speed))} s at {speed / 1e6:.0f} MB/s",
    }


def quantised(conversion: Conversion) -> str:
    """How many layers are quantised, and how many cannot be."""
    settings, count, unfit = conversion.quantization, len(conversion.quantized), len(conversion.unfit)
    assert settings is not None
    where = "the whole model" if settings.everything else "the language model"
    left = f"; {unfit} not quantised, since their rows are not divisible by {settings.group_size}" if unfit else ""
    return f"{count} of {count + unfit} layers of {where} to {settings.bits} bits, groups of {settings.group_size}{left}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _amount(tensors: list[Tensor]) -> str:
    kinds = Counter(NAMES.get(tensor.dtype, tensor.dtype) for tensor in tensors)
    return f"{len(tensors)} tensors, {gigabytes(sum(tensor.nbytes for tensor in tensors))} ({', '.join(kinds)})"


def _line(rule: Rule, count: int) -> str:
    name = rule.source if rule.source == rule.target else f"{rule.source} -> {rule.target}"
    return f"{count:5} {name}{', channels last' if rule.change == CHANNELS_LAST else ''}"
