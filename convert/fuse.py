"""Merges an adapter into its model, tensor by tensor.

Computes W + scale * (A B)^T in float32 and rounds once.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mlx_visalign.convert.io.folder import carry, new_folder, write_json, write_weights
from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.io.tensors import DTYPES, FLOATS, Loss, Tensor, cast
from mlx_visalign.convert.layouts.llava_names import BUFFERS
from mlx_visalign.convert.layouts.peft_folder import is_peft, require_beside
from mlx_visalign.convert.layouts.processor import state_template
from mlx_visalign.convert.layouts.table import Table
from mlx_visalign.convert.steps.dry_run import gigabytes
from mlx_visalign.convert.steps.fingerprint import source_fingerprint
from mlx_visalign.convert.steps.lora_deltas import Deltas, read_deltas
from mlx_visalign.convert.steps.quantize import Quantization
from mlx_visalign.convert.steps.to_mlx import CODES, OURS, meter
from mlx_visalign.models.adapter_files import check_base, fingerprint, stated
from mlx_visalign.models.model_folder import refuse, what_is_wrong
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.schema import build, unknown

MOST_LOST = 0.1  # the largest accepted rounding loss, as a share of the update's norm
AT_ONCE = 1 << 20  # weights merged per step, in float32
QUANTIZATION = ("quantization", "quantization_config")  # in config.json
LOSES = (
    "merging into quantised weights loses the update. Rounding to 4 bits again changes weights by 3.4 % of their norm even if "
    "nothing is added, and an update of 1 % of their norm ends up with an error 3.5 times its size (at 8 bits: half its "
    "size). Keep the adapter beside the model, or add --dequantize to get an unquantised one."
)


def fuse(
    model: Path,
    adapter: Path,
    output: Path,
    dtype: str = "float16",
    dequantize: bool = False,
    allow_rounding: bool = False,
    base_projector: bool = False,
) -> dict[str, Any]:
    """Write the merged model in `dtype` to `output`.

    Returns the summary as a dict. `adapter` is ours, PEFT's, or a LoRA folder of LLaVA's authors, whose projector is used
    too. At most one tensor and a few MB are in memory. Raises `UserError`

    - if the adapter was trained on another model or does not fit a tensor,
    - for a quantised model, unless `dequantize`,
    - if a number is too large for `dtype`,
    - if rounding loses more than `MOST_LOST` of the update, unless `allow_rounding`,
    - if the adapter's trained projector is missing, unless `base_projector`.
    """
    config = read_json(model / "config.json")
    quantization = _quantization(config, model, dequantize)
    projector = require_beside(adapter, base_projector) if is_peft(adapter) else None
    deltas = read_deltas(adapter)
    here = {**stated(model), "base_fingerprint": fingerprint(model)}
    check_base(adapter, deltas.config, here, lambda: source_fingerprint(model))
    source = open_source(model)
    fusion = Fusion(source, deltas, CODES[dtype], quantization)
    size = sum(tensor.nbytes for tensor in fusion.tensors)
    with new_folder(output, model) as folder:
        with meter("fusing", size) as on_bytes:
            write_weights(folder, fusion.tensors, fusion.produce, source.metadata, on_bytes)
        if fusion.lost > MOST_LOST and not allow_rounding:
            raise UserError(
                f"Rounding to {dtype} would lose {_share(fusion.lost)} of what {adapter} changes, so nothing was written. Use "
                "--dtype float32, or keep the adapter beside the model, which loses nothing; --allow-rounding merges it anyway."
            )
        fused = _config(config, deltas, dtype)
        write_json(folder / "config.json", fused)
        carried = carry(model, folder)
        remarks = state_template(folder, fused)
        refuse(output, what_is_wrong(folder, fused))
    return {
        "merged": f"{len(deltas.updates)} layers, and {len(deltas.beside)} tensors replaced",
        **({"projector": projector} if projector else {}),
        "rounding": f"to {dtype} lost {_share(fusion.lost)} of the update; {counted(fusion.loss.flushed, 'value')} became zero",
        **remarks,
        "carried over": ", ".join(carried) or "nothing",
        "output": f"{output}, {gigabytes(size)}",
    }


class Fusion:
    """A model's tensors with an adapter merged in.

    They are made one at a time. `loss` counts the overflows and underflows of all casts so far.
    """

    def __init__(self, model: Source, deltas: Deltas, dtype: str, quantization: Quantization | None):
        """Prepare the merge.

        `dtype` is a safetensors code, `quantization` the model's. Raises `UserError` if the adapter does not fit.
        """
        self.model, self.deltas, self.quantization = model, deltas, quantization
        self.packed = {f"{name.removesuffix('.scales')}.weight" for name in model.tensors if name.endswith(".scales")}
        parts = {name.replace(".weight", end) for name in self.packed for end in (".scales", ".biases")}
        buffers = Table(BUFFERS)
        kept = [tensor for name, tensor in model.tensors.items() if name not in parts and not buffers.find(name)]
        self.tensors = [Tensor(tensor.name, dtype, self._shape(tensor)) for tensor in kept]
        self._check(deltas.shapes, {tensor.name: tensor.shape for tensor in self.tensors})
        self.loss = Loss()
        self._update = self._error = 0.0  # sums of squares

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.name in self.packed and self.quantization is not None:
            return tensor.shape[0], tensor.shape[1] * 32 // self.quantization.bits
        if tensor.dtype not in FLOATS:
            raise UserError(f"{self.model.folder}: {tensor.name} has the type {tensor.dtype}, expected floats.")
        return tensor.shape

    def _check(self, wanted: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in wanted.items():
            if name not in shapes:
                raise UserError(f"{self.model.folder}: the adapter does not fit this model: {unknown(name, shapes)}")
            if shape != shapes[name]:
                raise UserError(f"{self.model.folder}: {name} has the shape {shapes[name]}, but the adapter expects {shape}.")

    @property
    def lost(self) -> float:
        """Norm of the rounding error relative to the update's norm."""
        return (self._error / self._update) ** 0.5 if self._update else 0.0

    def produce(self, tensor: Tensor) -> np.ndarray:
        """The array of one of `tensors`.

        Merged a block of rows at a time. Raises `UserError` if a number is too large for its type.
        """
        made = np.empty(tensor.shape, DTYPES[tensor.dtype])
        update = self.deltas.updates.get(tensor.name)
        matrices = update.matrices() if update else None
        step = max(1, AT_ONCE * len(made) // made.size)
        for start in range(0, len(made), step):
            rows = slice(start, start + step)
            weights = self._read(tensor.name, rows)
            change = np.float32(0) if matrices is None else matrices[1][:, rows].T @ matrices[0].T
            made[rows], loss = cast(weights + change, "F32", tensor.dtype)
            self.loss += loss
            if matrices is not None:
                merged = cast(made[rows], tensor.dtype, "F32")[0] - weights
                self._update += float(np.square(change, dtype=np.float64).sum())
                self._error += float(np.square(merged - change, dtype=np.float64).sum())
        if self.loss.overflowed:
            raise UserError(f"{tensor.name} holds numbers that are too large for this type. Choose --dtype float32.")
        return made

    def _read(self, name: str, rows: slice) -> np.ndarray:
        """Rows of the model's tensor, or of its replacement, in float32."""
        source, stored = self.deltas.beside.get(name, (self.model, name))
        array, dtype = source.read(stored)[rows], source.tensors[stored].dtype
        if source is self.model and name in self.packed and self.quantization is not None:
            scales, biases = (f"{name.removesuffix('.weight')}.{end}" for end in ("scales", "biases"))
            parts = (source.read(scales)[rows], source.read(biases)[rows])
            return self.quantization.dequantize(array, *parts, source.tensors[scales].dtype)
        return cast(array, dtype, "F32")[0]


def _share(lost: float) -> str:
    """A percentage; the rounding error can exceed the update itself."""
    return f"{lost:.2%}" if lost < 1 else "all"


def _quantization(config: dict[str, Any], model: Path, dequantize: bool) -> Quantization | None:
    found = config.get("quantization")
    if found is None:
        return None
    if not dequantize:
        raise UserError(f"{model} is quantised, and {LOSES}")
    if not isinstance(found, dict) or found.get("mode", "affine") != "affine":
        raise UserError(f"{model}/config.json: only MLX's affine quantisation can be dequantised, got {found!r}.")
    return build(Quantization, {name: found.get(name) for name in ("bits", "group_size")}, f"{model}/config.json: quantization")


def _config(config: dict[str, Any], deltas: Deltas, dtype: str) -> dict[str, Any]:
    """The fused model's config.json, unquantised.

    Its source_fingerprint is dropped: the fused weights are their own source.
    """
    ours = {name: value for name, value in config.get(OURS, {}).items() if name != "source_fingerprint"}
    fused = {name: deltas.config[name] for name in ("method", "round", "template", "aspect") if name in deltas.config}
    kept = {name: value for name, value in config.items() if name not in QUANTIZATION}
    return {**kept, "torch_dtype": dtype, OURS: {**ours, **fused, "fused": True}}
