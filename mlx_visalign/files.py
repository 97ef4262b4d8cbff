"""Writes that survive a kill, a full disk or a power cut: a file is the old one or the new one, never a half."""

import os
import sys
from pathlib import Path

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
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    sync(unfinished)
    os.replace(unfinished, path)
    sync(path.parent)
