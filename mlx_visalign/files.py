"""Writes that survive a kill, a full disk or a power cut: a file is the old one or the new one, never a half."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_visalign.errors import UserError

if sys.platform == "darwin":
    import fcntl


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable before anything that relies on it is written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """`fsync`; on a Mac, where fsync stops at the drive's cache, the call that goes through it."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` (UTF-8) under another name and move it to `path` once it is safely on the disk."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what was written is moved to `path` once it is safely on the disk."""
    unfinished = path.with_name(f".unfinished-{path.name}")  # the ending stays: MLX would append .safetensors to another
    with writing(path):
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A write that the system refuses (disk full, no permission) becomes a UserError that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # MLX reports a failed write as a RuntimeError
        raise UserError(
            f"{path} could not be written: {error}. What was finished before is untouched: "
            "make room or give permission, then run the same command again and it goes on from there."
        ) from error
