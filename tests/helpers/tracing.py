"""Every name in a folder that code writes to: found by watching it, temporaries and locks among them.

Python tells what it opens, makes, renames and removes (PEP 578), but not relative to which open folder: `os.open` is wrapped
for that. What native code writes is found by comparing the folder with what it was.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
F_GETPATH = 50  # on a Mac
PLACES = {"os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.rename": ((0, 2), (1, 3))}
PLACES |= {"os.truncate": ((0, None),), "os.symlink": ((1, 2),), "os.link": ((1, 3),)}

_tracer: "Tracer | None" = None


class Tracer:
    """names: what was written to, relative to the folder, in order. kept: files that were opened, not made, to be changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: dict[str, None] = {}
        self.kept: set[str] = set()
        self.relative = False  # while a file is opened relative to a folder, which is noted where it is known

    def note(self, path: Path, kept: bool = False) -> None:
        if path.is_relative_to(self.folder) and path != self.folder:
            name = str(path.relative_to(self.folder))
            self.names[name] = None
            self.kept |= {name} if kept else set()

    def tell(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike) and args[2] & CHANGES and not self.relative:
            self.note(absolute(args[0]), kept=not args[2] & os.O_EXCL)
        for path, folder in PLACES.get(event, ()):
            self.note(absolute(args[path], -1 if folder is None else args[folder]), kept=event == "os.truncate")


def absolute(path: Any, folder: int | None = -1) -> Path:
    if isinstance(path, int):
        return Path(path_of(path))
    above = os.getcwd() if folder in (-1, None) else path_of(folder)
    return Path(os.path.normpath(Path(above, os.fsdecode(path))))


def path_of(descriptor: int) -> str:
    if sys.platform == "darwin":
        return os.fsdecode(fcntl.fcntl(descriptor, F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _tell(event: str, args: tuple[Any, ...]) -> None:
    if _tracer is not None:
        _tracer.tell(event, args)


sys.addaudithook(_tell)  # there is no way to take it back


@contextmanager
def tracing(folder: Path) -> Iterator[Tracer]:
    """Trace what is written in `folder` within the block."""
    global _tracer
    tracer, before, opened = Tracer(folder), listing(folder), os.open

    def noted(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & CHANGES:
            tracer.note(absolute(path, dir_fd), kept=not flags & os.O_EXCL)
        tracer.relative = dir_fd is not None
        try:
            return opened(path, flags, mode, dir_fd=dir_fd)
        finally:
            tracer.relative = False

    os.open, _tracer = noted, tracer
    try:
        yield tracer
    finally:
        os.open, _tracer = opened, None
    after = listing(folder)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            tracer.names[name] = None


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """What tells whether a file, a folder's list of names or a link has changed; a link is not followed."""
    return {str(path.relative_to(folder)): _state(path) for path in folder.rglob("*")}


def _state(path: Path) -> tuple[int, ...]:
    about = path.lstat()
    return about.st_mode, about.st_ino, about.st_size * path.is_file(), about.st_mtime_ns * (not path.is_dir())
