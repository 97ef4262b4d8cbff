"""Model folders: how a new one comes to be, whole or not at all, and what is carried over into it from another.

A folder is built under another name beside its own and gets its name at the end. The source is only ever read.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlx_visalign.convert.safetensors_file import write_safetensors
from mlx_visalign.convert.tensors import Tensor
from mlx_visalign.models.hub import CARRIED
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import building, read_json, replacing, write_atomically
from mlx_visalign.utils.links import named

SHARD_BYTES = 5 << 30

CODE = {"auto_map", "custom_pipelines", "model_file"}  # where a config points transformers or mlx-vlm to Python


@contextmanager
def new_folder(path: Path, source: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the block ends well and disappears when it does not.

    Raises `UserError` if `path` holds something, lies in `source`, or is being written by another process.
    """
    with building(check_output(path, source)) as unfinished:
        yield unfinished


def check_output(path: Path, source: Path) -> Path:
    """The place to write to. Refuse one where something is, that is a link, or that would change the source."""
    place = named(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already. Name another place, or remove it first.")
    if path.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{path} lies in {source}, which is never written to. Name another place.")
    return place


def write_weights(
    folder: Path,
    tensors: Sequence[Tensor],
    produce: Callable[[Tensor], np.ndarray],
    metadata: dict[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    """`tensors` as model.safetensors, or as shards of at most 5 GiB with an index. Arguments as `write_safetensors` has."""
    total = sum(tensor.nbytes for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(f"{total / 1e9:.2f} GB are needed at {folder.parent}, {free / 1e9:.2f} GB are free. Make room first.")
    shards = split(tensors)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, produce, metadata, on_bytes)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def split(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Consecutive tensors in shards of at most `SHARD_BYTES`; a tensor that is larger gets its own."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def carry(source: Path, folder: Path) -> list[str]:
    """Copy tokenizer, processor, chat template, generation config and licence; returns their names."""
    names = [name for name in CARRIED if (source / name).is_file()]
    for name in names:
        if name.endswith("_config.json") and (config := read_json(source / name)) != (safe := without_code(config)):
            write_json(folder / name, safe)
            continue
        with (source / name).open("rb") as file, replacing(folder / name) as unfinished:
            shutil.copyfileobj(file, unfinished)
    return names


def without_code(value: Any) -> Any:
    """A config without its pointers to Python files."""
    if isinstance(value, list):
        return [without_code(item) for item in value]
    if isinstance(value, dict):
        return {name: without_code(item) for name, item in value.items() if name not in CODE}
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
