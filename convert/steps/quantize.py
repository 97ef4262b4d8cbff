"""Affine quantisation, one tensor at a time.

The result is that of `mlx.nn.quantize`, which needs the whole model in memory. A group of neighbouring weights in a row
shares a scale and a bias: w ~ scale * q + bias, q in 0 .. 2^bits - 1.
"""

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_visalign.convert.io.tensors import DTYPES, Tensor

BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)  # what mx.quantize supports
AT_ONCE = 1 << 23  # weights quantised per step; rows are independent
LANGUAGE = "language_model."


@dataclass(frozen=True)
class Quantization:
    """Quantisation settings.

    `everything` includes vision tower and projector: a twentieth of LLaVA-1.5-7B, and more sensitive to it.
    """

    bits: int
    group_size: int
    everything: bool = False

    def meant_for(self, tensor: Tensor) -> bool:
        """Whether `tensor` should be quantised.

        True for matrices of linear layers and token embeddings in the chosen part of the model.
        """
        is_matrix = tensor.name.endswith(".weight") and len(tensor.shape) == 2
        chosen = self.everything or tensor.name.startswith(LANGUAGE)
        return is_matrix and chosen and not tensor.name.endswith("position_embedding.weight")

    def fits(self, tensor: Tensor) -> bool:
        return tensor.shape[-1] % self.group_size == 0

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """The tensors that a quantised matrix consists of.

        Packed `weight` (U32), and one scale and bias per group, in the matrix's own type.
        """
        rows, columns = tensor.shape
        layer = tensor.name.removesuffix(".weight")
        groups = replace(tensor, shape=(rows, columns // self.group_size))
        return [
            Tensor(tensor.name, "U32", (rows, columns * self.bits // 32)),
            replace(groups, name=f"{layer}.scales"),
            replace(groups, name=f"{layer}.biases"),
        ]

    def quantize(self, array: np.ndarray, code: str) -> list[np.ndarray]:
        """Quantise a matrix into the arrays of `parts`.

        `code` is the matrix's type (BF16 as uint16 bits). The order is that of `parts`.
        """
        rows, columns = array.shape
        step = max(1, AT_ONCE // columns)
        pieces = [self._piece(array[start : start + step], code) for start in range(0, rows, step)]
        return [np.concatenate(part) for part in zip(*pieces, strict=True)]

    def _piece(self, rows: np.ndarray, code: str) -> list[np.ndarray]:
        packed, scales, biases = mx.quantize(_to_mlx(rows, code), group_size=self.group_size, bits=self.bits)
        return [np.array(packed), _to_numpy(scales, code), _to_numpy(biases, code)]

    def dequantize(self, packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, code: str) -> np.ndarray:
        """The dequantised matrix, in float32."""
        scale, bias = (_to_mlx(part, code).astype(mx.float32) for part in (scales, biases))
        return np.array(mx.dequantize(mx.array(packed), scale, bias, group_size=self.group_size, bits=self.bits))

    @property
    def config(self) -> dict[str, int | str]:
        """The quantisation section of config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": "affine"}


def _to_mlx(array: np.ndarray, code: str) -> mx.array:
    found = mx.array(np.ascontiguousarray(array))
    return found.view(mx.bfloat16) if code == "BF16" else found


def _to_numpy(array: mx.array, code: str) -> np.ndarray:
    return np.array(array.view(mx.uint16) if code == "BF16" else array).astype(DTYPES[code], copy=False)
