"""Writes model folders, completely or not at all.

A folder is built beside its final place under a temporary name, and renamed at the end. The source is never modified.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlx_visalign.convert.io.safetensors_file import write_safetensors
from mlx_visalign.convert.io.tensors import Tensor
from mlx_visalign.models.hub import CARRIED
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import building, read_json, replacing, write_atomically
from mlx_visalign.utils.links import named

SHARD_BYTES = 5 << 30

CODE = {"auto_map", "custom_pipelines", "model_file"}  # config keys that make transformers or mlx-vlm load Python files


@contextmanager
def new_folder(path: Path, source: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` on success.

    It is removed if the block raises.

    Raises `UserError` if `path` holds something, lies in `source`, or is being written by another process.
    """
    with building(check_output(path, source)) as unfinished:
        yield unfinished


def check_output(path: Path, source: Path) -> Path:
    """The output path, checked.

    Raises `UserError` if something is there, if it is a link, or if it lies in the source.
    """
    place = named(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists. Choose another folder, or remove it first.")
    if path.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{path} is inside the source {source}, which is never modified. Choose another folder.")
    return place


def write_weights(
    folder: Path,
    tensors: Sequence[Tensor],
    produce: Callable[[Tensor], np.ndarray],
    metadata: dict[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    """Write `tensors` as model.safetensors, or sharded with an index.

    Shards have at most `SHARD_BYTES`. The other arguments are those of `write_safetensors`.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(
            f"{folder.parent} needs {total / 1e9:.2f} GB of disk space, {free / 1e9:.2f} GB are free. Free some space first."
        )
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
    """Consecutive tensors in shards of at most `SHARD_BYTES`.

    A larger tensor gets a shard of its own.
    """
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
    """Copy all files but weights and config.json.

    They are tokenizer, processor, chat template, generation config and licence. Returns their names.
    """
    names = [name for name in CARRIED if (source / name).is_file()]
    for name in names:
        if name.endswith("_config.json") and (config := read_json(source / name)) != (safe := without_code(config)):
            write_json(folder / name, safe)
            continue
        with (source / name).open("rb") as file, replacing(folder / name) as unfinished:
            shutil.copyfileobj(file, unfinished)
    return names


def without_code(value: Any) -> Any:
    """A config without references to Python files."""
    if isinstance(value, list):
        return [without_code(item) for item in value]
    if isinstance(value, dict):
        return {name: without_code(item) for name, item in value.items() if name not in CODE}
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
