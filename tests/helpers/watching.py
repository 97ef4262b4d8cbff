"""What code does beyond its own memory, as Python itself tells it (PEP 578): files opened, processes started, connections.

Native readers (MLX, safetensors, tokenizers) do not ask Python, so on Linux the kernel is asked as well who opens what in a
folder of secrets.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_visalign.models.chat_template import RENDERING

STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
CALLED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
IN_OPEN = 0x20


@dataclass
class Seen:
    """Files that were opened, what was executed and who was called, in order; `secrets`: whether a secret was opened."""

    opened: list[Path] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    secrets: bool = False

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            self.opened.append(Path(os.path.realpath(os.fsdecode(args[0]))))
        elif event in STARTED and not _is_the_renderer(event, args):
            self.executed.append(f"{event} {args}")
        elif event in CALLED:
            self.called.append(f"{event} {args}")


def _is_the_renderer(event: str, args: tuple[Any, ...]) -> bool:
    """Our own program that renders chat templates, which the kernel watches as well."""
    return event == "subprocess.Popen" and args[1] == [sys.executable, "-P", str(RENDERING)]


_watchers: list[Seen] = []


def _tell(event: str, args: tuple[Any, ...]) -> None:
    for seen in _watchers:
        seen.note(event, args)


sys.addaudithook(_tell)  # there is no way to take it back, so it is one for all


@contextmanager
def watching(secrets: Path) -> Iterator[Seen]:
    """See what is done within the block; nobody should open anything in the folder `secrets`."""
    seen = Seen()
    _watchers.append(seen)
    try:
        with _kernel_watches(secrets, seen):
            yield seen
    finally:
        _watchers.remove(seen)


@contextmanager
def _kernel_watches(folder: Path, seen: Seen) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, bytes(folder), IN_OPEN) > 0
    try:
        yield
        seen.secrets = bool(os.read(descriptor, 4096))
    except BlockingIOError:  # nothing to tell
        pass
    finally:
        os.close(descriptor)
