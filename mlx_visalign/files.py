"""Writes that survive a kill, a full disk or a power cut (a file is the old one or the new one, never a half); and reads
that stay where they belong."""

import os
import shlex
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
    """A name beside `path` to write to; what was written is moved to `path` once it is safely on the disk.

    The folder is made if need be.
    """
    unfinished = path.with_name(f".unfinished-{path.name}")  # the ending stays: MLX would append .safetensors to another
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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


def image_inside(root: Path, name: str, where: str, elsewhere: str | None = None) -> Path:
    """The file that a row of data calls `name`, which must lie in the folder `root`: untrusted rows read nothing else.

    Names are compared, links are followed: the hub's cache is a folder of links, and a row cannot make one. `elsewhere` is
    the folder that errors advise to name: nothing is read from there before the user has done so.
    """
    root = Path(os.path.abspath(root))
    path = Path(os.path.normpath(root / name))
    advice = "Name the folder of the images with --images."
    if elsewhere is not None:
        advice = f"Add --images {shlex.quote(elsewhere)}, where this run's images are."
    if not path.is_relative_to(root):
        raise UserError(f"{where}: the image {name} lies outside {root}. {advice}")
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise UserError(f"{where}: there is no image {path}. {advice}")
    return path
