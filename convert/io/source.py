"""Opens weights: one file, or a folder of shards.

With or without an index. Only headers are read; a tensor's bytes are mapped on request, and the files are never modified.
A file may be a symbolic link, as in the hub's cache.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlx_visalign.convert.io.safetensors_file import read_header
from mlx_visalign.convert.io.tensors import Entry, Tensor
from mlx_visalign.convert.io.torch_file import read_torch
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.schema import convert

SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*)")


@dataclass(frozen=True)
class Source:
    """Tensors on disk.

    `metadata` is that of safetensors files, such as {"format": "mlx"}.
    """

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
    """The weights of a file or a model folder.

    A folder has `model.safetensors` or `pytorch_model.bin`, in one file or in shards. If it has several, safetensors are
    preferred, and one file to shards, as in transformers. Raises `UserError` naming the missing shard, or the tensor that is
    duplicated or not where the index says.
    """
    if path.is_file():
        return _gather(path.parent, [path])
    if not path.is_dir():
        raise UserError(f"{path} does not exist: expected a file of weights or a model folder.")
    for whole, shards in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        index = path / f"{whole}.index.json"
        if (path / whole).is_file():
            return _gather(path, [path / whole])
        if index.is_file():
            return _indexed(index)
        if files := sorted(file for file in path.glob(shards) if not file.name.startswith(".")):
            return _gather(path, _whole_set(files))
    raise UserError(f"{path} has no weights: expected model.safetensors, pytorch_model.bin or shards of them.")


def _indexed(index: Path) -> Source:
    """The shards of an index; each must hold exactly the tensors that the index lists for it."""
    placed = convert(read_json(index).get("weight_map"), dict[str, str], f"{index}: weight_map")
    if outside := sorted({name for name in placed.values() if Path(name).name != name}):
        raise UserError(listed(f"{index} names shards outside its own folder", map(repr, outside)))
    source = _gather(index.parent, _existing(index.parent / name for name in sorted(set(placed.values()))))
    lost = [name for name, file in placed.items() if name not in source.entries or source.entries[name].path.name != file]
    if lost:
        found = [f"it says that {placed[name]} holds {name}, but it does not" for name in lost]
        raise UserError(listed(str(index), found, "Download both again."))
    if extra := sorted(source.entries.keys() - placed.keys()):
        found = [f"{source.entries[name].path.name} holds {name}, which {index.name} does not name" for name in extra]
        raise UserError(listed(str(index.parent), found, "Is it from another model?"))
    return source


def _whole_set(files: list[Path]) -> list[Path]:
    """`files`, once all shards exist that a name like model-00001-of-00003.safetensors implies."""
    implied = list(files)
    for file in files:
        if match := SHARD.fullmatch(file.name):
            start, _, total, end = match.groups()
            implied += [file.with_name(f"{start}-{number:05d}-of-{total}{end}") for number in range(1, int(total) + 1)]
    _existing(dict.fromkeys(implied))
    return files


def _existing(shards: Iterable[Path]) -> list[Path]:
    found = list(shards)  # Path.is_file would raise for a name that is too long
    if missing := [shard for shard in found if not os.path.isfile(shard)]:
        lost = [f"the shard {shard.name} is missing" for shard in missing]
        raise UserError(listed(f"{missing[0].parent} is incomplete", lost, "Download the folder again."))
    return found


def _gather(folder: Path, files: list[Path]) -> Source:
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, notes = read_header(file) if file.suffix == ".safetensors" else (read_torch(file), {})
        if twice := sorted(entries.keys() & found.keys()):
            both = [f"{name} is in two files, {entries[name].path.name} and {file}" for name in twice]
            raise UserError(listed(str(file.parent), both, "Remove the wrong one."))
        entries |= found
        metadata |= notes
    return Source(folder, entries, metadata)
