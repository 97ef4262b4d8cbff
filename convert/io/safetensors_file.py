"""Reads and writes safetensors files, one tensor at a time.

Headers are checked by safetensors' own (Rust) reader; data are mapped or streamed. `mx.load` accepts overlapping and missing
ranges, trailing bytes and negative sizes; the Rust reader refuses them all. It does not return the tensors' offsets, so the
header is parsed a second time.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_visalign.convert.io.tensors import DTYPES, Entry, Tensor, check_tensor, contiguous_strides
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import replacing
from mlx_visalign.utils.lfs_pointers import refuse_pointer

LENGTH = 8  # bytes: a file begins with its header's length, a little-endian integer
METADATA = "__metadata__"


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """A file's tensors by name, and its metadata.

    The metadata are such as {"format": "pt"} or {"format": "mlx"}. Raises `UserError` for a missing file, for everything
    that safetensors refuses, and for two violations of its format that it accepts: a duplicate name, and a header that does
    not begin with a brace.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            header = _parsed(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} is not a complete safetensors file ({error}). Download or convert it again.") from None
    metadata = header.pop(METADATA, None) or {}
    return {name: _entry(name, about, path, LENGTH + length) for name, about in header.items()}, metadata


def _parsed(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise ValueError("its header does not begin with a brace")
    return cast(dict[str, Any], json.loads(text, object_pairs_hook=_unique))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("its header has a duplicate name")
    return values


def _entry(name: str, about: dict[str, Any], path: Path, data: int) -> Entry:
    tensor = Tensor(name, about["dtype"], tuple(about["shape"]))
    check_tensor(tensor, path)
    return Entry(tensor, path, data + about["data_offsets"][0], contiguous_strides(tensor.shape))


def write_safetensors(
    path: Path,
    tensors: Sequence[Tensor],
    produce: Callable[[Tensor], np.ndarray],
    metadata: dict[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    """Write `tensors` to a file, one at a time.

    `produce` returns a tensor's array; `on_bytes` is called with the bytes written. The file gets its name once it is
    complete and on disk. Wide types come first, as in files that safetensors itself writes, so that every tensor is aligned;
    within a type the given order is kept. Raises `UserError` if the write fails, `ValueError` if an array does not match its
    tensor.
    """
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    with replacing(path) as file:
        file.write(_header(ordered, metadata))
        for tensor in ordered:
            file.write(_checked(produce(tensor), tensor).data)
            on_bytes(tensor.nbytes)


def _header(tensors: Sequence[Tensor], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {METADATA: metadata}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)  # aligns the data
    return len(text).to_bytes(LENGTH, "little") + text


def _checked(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    if array.shape != tensor.shape or array.dtype != DTYPES[tensor.dtype]:
        raise ValueError(f"expected an array for {tensor}, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)
