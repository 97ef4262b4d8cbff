"""safetensors files, one tensor at a time: headers checked by safetensors' own (Rust) reader, data mapped or streamed.

`mx.load` accepts overlapping and missing ranges, trailing bytes and negative sizes; the Rust reader refuses them all.
It does not say where a tensor lies, though, so after its verdict the header is read once more.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_visalign.convert.tensors import DTYPES, Entry, Tensor, check_tensor, contiguous_strides
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import replacing
from mlx_visalign.utils.lfs_pointers import refuse_pointer

LENGTH = 8  # bytes: a file begins with its header's length, a little-endian integer
METADATA = "__metadata__"


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Every tensor of a file by its name, and the file's own notes ("format": "pt" or "mlx").

    Raises `UserError` for a missing file, for everything that safetensors itself refuses, and for two slips against its
    format that it lets pass: a name that comes twice, and a header that does not begin with a brace.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            header = _parsed(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} is not a whole safetensors file ({error}). Download or convert it again.") from None
    metadata = header.pop(METADATA, None) or {}
    return {name: _entry(name, about, path, LENGTH + length) for name, about in header.items()}, metadata


def _parsed(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise ValueError("its header does not begin with a brace")
    return cast(dict[str, Any], json.loads(text, object_pairs_hook=_unique))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name comes twice in its header")
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
    """Write a file of `tensors`, asking `produce` for one array at a time and telling `on_bytes` how much was written.

    The file gets its name when it is whole and on the disk. Wide types come first, as in files that safetensors writes
    itself, so that every tensor is aligned; within a type the order is the one given. Raises `UserError` if the system
    refuses the write, `ValueError` if an array is not what its tensor says.
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
    text += b" " * (-len(text) % LENGTH)  # so that the data begin aligned
    return len(text).to_bytes(LENGTH, "little") + text


def _checked(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    if array.shape != tensor.shape or array.dtype != DTYPES[tensor.dtype]:
        raise ValueError(f"{tensor} was promised, an array of {array.dtype} {array.shape} came")
    return np.ascontiguousarray(array)
