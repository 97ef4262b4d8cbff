"""Reads torch's .bin files without torch or unpickling.

They are zips of one pickle (torch_pickle) and raw storages. Storages must be uncompressed in the archive, as torch.save writes
them, so that tensors can be mapped in place. Every claim of a file is checked against its bytes before anything is mapped.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlx_visalign.convert.io.tensors import DTYPES, Entry, Tensor, check_tensor, extent
from mlx_visalign.convert.io.torch_pickle import View, read_state_dict
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.lfs_pointers import refuse_pointer

PICKLE_LIMIT = 2 << 20  # bytes: that of LLaVA-7B has 0.1 MB
LOCAL_MARK = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # the mark, and the lengths of the name and the extra field that follow
ENCRYPTED = 0x1


@dataclass(frozen=True)
class _Member:
    """A file of the archive: `size` bytes from `offset`."""

    offset: int
    size: int


def read_torch(path: Path) -> dict[str, Entry]:
    """The tensors of a file written by torch.save, by name.

    By torch 1.6 or newer. Raises `UserError` for other formats, and for anything that a plain state dict does not contain.
    """
    try:
        with path.open("rb") as file:
            members = _members(file)
            views = read_state_dict(_pickle(file, members))
        return {name: _entry(name, view, path, members) for name, view in views.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, NotImplementedError, OverflowError, struct.error, zipfile.BadZipFile) as error:
        refuse_pointer(path)
        raise UserError(f"{path} was refused (nothing in it was executed): {error}.") from None


def _members(file: BinaryIO) -> dict[str, _Member]:
    """The archive's files, by their names without the common top folder."""
    if file.read(len(LOCAL_MARK)) != LOCAL_MARK:
        raise ValueError("it is not a zip; torch before 1.6 wrote other formats, so save it again with a newer one")
    members: dict[str, _Member] = {}
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    end = file.seek(0, 2)
    root = infos[0].filename.split("/")[0] if infos else ""
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if folder != root or not name or name in members or ".." in name.split("/") or folder in ("", ".", ".."):
            raise ValueError(f"its archive has an unsafe or duplicate file name ({info.filename[:80]!r})")
        members[name] = _member(file, info, end)
    if sum(member.size for member in members.values()) > end:
        raise ValueError("the files in its archive overlap")
    return members


def _member(file: BinaryIO, info: zipfile.ZipInfo, end: int) -> _Member:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & ENCRYPTED:
        raise ValueError(f"{info.filename[:80]!r} in its archive is compressed or encrypted, which torch never does")
    file.seek(info.header_offset)
    mark, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    offset = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if mark != LOCAL_MARK or offset + info.file_size > end:
        raise ValueError(f"{info.filename[:80]!r} in its archive is not where its directory says")
    return _Member(offset, info.file_size)


def _pickle(file: BinaryIO, members: dict[str, _Member]) -> bytes:
    if "data.pkl" not in members:
        raise ValueError("its archive has no data.pkl, so torch.save did not write it")
    if "byteorder" in members and _content(file, members["byteorder"]) != b"little":
        raise ValueError("it was written on a big-endian machine")
    return _content(file, members["data.pkl"])


def _content(file: BinaryIO, member: _Member) -> bytes:
    if member.size > PICKLE_LIMIT:
        raise ValueError(f"its pickle has {member.size} bytes, more than the limit of {PICKLE_LIMIT}")
    file.seek(member.offset)
    return file.read(member.size)


def _entry(name: str, view: View, path: Path, members: dict[str, _Member]) -> Entry:
    """The view as an entry, once its type, offset, sizes and strides fit the bytes of its storage."""
    tensor = Tensor(name, view.storage.dtype, view.shape)
    size = DTYPES[tensor.dtype].itemsize
    member = members.get(f"data/{view.storage.key}")
    if member is None or member.size != view.storage.count * size:
        raise ValueError(f"the storage of {name[:80]!r} is missing or has the wrong size")
    if min(view.offset, *view.shape, *view.strides, 0) < 0 or len(view.shape) != len(view.strides):
        raise ValueError(f"{name[:80]!r} has a negative offset, size or stride")
    check_tensor(tensor, path)
    reach = extent(view.shape, view.strides)
    if view.offset + reach > view.storage.count or tensor.count > reach:
        raise ValueError(f"{name[:80]!r} reaches beyond its storage, or overlaps itself")
    return Entry(tensor, path, member.offset + view.offset * size, view.strides)
