"""Makes torch_file.bin, a state dict that torch itself saved, and torch_file.npz, the same tensors as NumPy sees them.

Run: python tests/golden/make_torch_file.py
"""

from pathlib import Path

import numpy as np
import torch


def state_dict() -> dict[str, torch.Tensor]:
    """Every kind of tensor that a checkpoint may hold: all float types, views, shared storages, parameters."""
    torch.manual_seed(0)
    rows = torch.arange(24.0).reshape(4, 6)
    tied = torch.randn(3, 5).half()
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()  # brings _metadata with it
    layer.update(
        double=torch.randn(2, 2, dtype=torch.float64),
        single=rows,
        half=tied,
        brain=torch.randn(3, 2).bfloat16(),
        integers=torch.arange(-2, 3),
        bytes=torch.tensor([1, 255], dtype=torch.uint8),
        truths=torch.tensor([True, False]),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
        transposed=rows.T,
        slice=rows[1:3, ::2],
        convolution=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        tied=tied,
    )
    return layer


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors in NumPy, bfloat16 as its bits."""
    plain = {name: value.detach() for name, value in tensors.items()}
    return {name: (v.view(torch.uint16) if v.dtype == torch.bfloat16 else v).numpy() for name, v in plain.items()}


if __name__ == "__main__":
    folder = Path(__file__).parent
    torch.save(state_dict(), folder / "torch_file.bin")
    np.savez_compressed(folder / "torch_file.npz", versions=f"torch {torch.__version__}", **arrays(state_dict()))
