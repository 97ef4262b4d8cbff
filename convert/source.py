"""Where weights come from: a file, or a folder of one file or of shards, with or without an index.

Only headers are read; a tensor's bytes are mapped when it is asked for and the files are never written to.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlx_visalign.convert.safetensors_file import read_header
from mlx_visalign.convert.tensors import Entry, Tensor
from mlx_visalign.errors import UserError


@dataclass(frozen=True)
class Source:
    """Tensors on disk. `metadata` is what safetensors files say of themselves, such as {"format": "mlx"}."""

    folder: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {name: entry.tensor for name, entry in self.entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped and read-only; BF16 as uint16 bits."""
        return self.entries[name].read()


def open_source(path: Path) -> Source:
    """The weights at `path`, every tensor accounted for."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path} holds no weights.")
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, notes = read_header(file)
        entries |= found
        metadata |= notes
    return Source(path if path.is_dir() else path.parent, entries, metadata)
