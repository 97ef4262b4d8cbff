"""Atomic file writes that follow no symlinks.

Writes survive a kill, a full disk and a power cut: a path holds either the old file or the complete new one, because a file
has a random temporary name until it is complete. Files are opened relative to their folder's descriptor, without following
links (see `links`), so that nothing outside an untrusted folder is touched. Temporary files that a kill left behind are
removed by the next process that writes into the same folder.
"""

import codecs
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.links import unlinked

UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{16}(?:-(.*))?", re.DOTALL)
NEITHER_LINK_NOR_WAIT = os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would block
_cleared: set[tuple[int, int]] = set()  # folders already cleared by this process, by device and inode


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8.

    A lone surrogate (in a file name, for example) is written as JSON escapes it.
    """
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Temporary file that replaces `path` if the block succeeds.

    It is deleted if the block raises. Missing folders are created. `durable` syncs it to the disk; files that can be made
    again need not be.
    """
    with writing(path), _folder_of(path) as folder:
        name = _fresh_name()
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | NEITHER_LINK_NOR_WAIT, 0o666, dir_fd=folder)
        try:
            with open(handle, "w+b") as file:
                with suppress(OSError):  # some file systems have no locks
                    _lock(handle)  # or another process could clear it away before it is renamed
                yield file
                file.flush()
                if durable:
                    sync(handle)
                os.replace(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            raise
        if durable:
            sync(folder)


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Open `path` to read, truncate and append.

    It is created if missing. UserError if it has hard links, for they would change too.
    """
    with writing(path), _folder_of(path) as folder, _open_own(path, os.O_APPEND, folder) as file:
        if os.fstat(file.fileno()).st_nlink != 1:
            raise UserError(
                f"{path} was not written to, since it is a hard link: the same file under another name would change too. "
                "Put a copy of it in its place, or remove it."
            )
        yield file


def claim(path: Path) -> BinaryIO | None:
    """Lock the file `path`.

    Returns None if another process holds the lock. The lock lasts until the returned file is closed or the process ends.
    Nothing is written to the file.
    """
    with writing(path), _folder_of(path) as folder:
        file = _open_own(path, 0, folder)
        if _lock(file.fileno()):
            return file
        file.close()
        return None


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Temporary folder that becomes `path` if the block succeeds.

    It is deleted if the block raises. `path` may be an empty folder. UserError if another process is writing it.
    """
    with _folder_of(path) as parent:
        name = f"{_fresh_name()}-{path.name}"
        with writing(path):
            os.mkdir(name, dir_fd=parent)
        try:
            with _opened(name, parent) as folder:
                with writing(path):
                    others = [other for other, becomes in _unfinished(parent) if becomes == path.name and other != name]
                    alone = _lock(folder) and all(_clear(other, parent) for other in others)
                if not alone:
                    raise UserError(f"Another process is writing {path}. Wait until it ends, or choose another path.")
                yield path.with_name(name)
                with writing(path):
                    sync(folder)
                    os.replace(name, path.name, src_dir_fd=parent, dst_dir_fd=parent)
                    sync(parent)
        except BaseException:
            shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
            raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    UserError if the system refuses, or a link is in the way.
    """
    with writing(path):
        try:
            unlinked(path).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{path} could not be written: a file is where a folder has to be. Choose another path, or move the file away."
            ) from None


def remove(path: Path) -> None:
    """Remove a file, link or folder tree, if present.

    A link itself is removed, not its target.
    """
    if os.path.lexists(path):
        unlinked(path.parent)
        with writing(path), _opened(path.parent) as folder:
            if stat.S_ISDIR(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(path.name, dir_fd=folder)
            else:
                os.unlink(path.name, dir_fd=folder)


def sync(descriptor: int) -> None:
    """Flush a file or folder descriptor to the disk.

    On macOS `fsync` stops at the drive's cache, so F_FULLFSYNC is used there.
    """
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def save_pretrained(made: Any, folder: Path) -> None:
    """`save_pretrained` of a tokenizer or processor, written atomically."""
    with TemporaryDirectory() as own:
        with writing(folder, Exception):  # Rust's tokenizers report a failed write by no other name
            made.save_pretrained(own)
        for file in sorted(Path(own).iterdir()):
            with file.open("rb") as content, replacing(folder / file.name) as copy:
                shutil.copyfileobj(content, copy)


@contextmanager
def writing(path: Path, refused: type[Exception] | tuple[type[Exception], ...] = (OSError, RuntimeError)) -> Iterator[None]:
    """Turn a failed write into a UserError that names `path`.

    A full disk or a missing permission, for example. MLX reports a failed write as a RuntimeError.
    """
    try:
        yield
    except refused as error:
        becomes = [(match and match[1]) or part for part in path.parts for match in [UNFINISHED.fullmatch(part)]]
        raise UserError(
            f"{Path(*becomes)} could not be written: {error}. Finished work is safe: make room on the "
            "disk or fix the permissions, then run the same command again to resume."
        ) from error


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    """Descriptor of the folder of `path`, created if missing and cleared of unfinished files."""
    make_folder(unlinked(path).parent)
    with _opened(path.parent) as folder:
        about = os.fstat(folder)
        if (about.st_dev, about.st_ino) not in _cleared:
            _cleared.add((about.st_dev, about.st_ino))
            for name, _ in _unfinished(folder):
                _clear(name, folder)
        yield folder


@contextmanager
def _opened(path: Path | str, above: int | None = None) -> Iterator[int]:
    with writing(Path(path)):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    try:
        yield folder
    finally:
        os.close(folder)


def _open_own(path: Path, flags: int, folder: int) -> BinaryIO:
    """Open a regular file, created if missing, without truncating it."""
    handle = os.open(path.name, os.O_RDWR | os.O_CREAT | flags | NEITHER_LINK_NOR_WAIT, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} was not written to, since it is not a regular file. Remove it, or choose another path.")
    return open(handle, "a+b" if flags else "r+b")


def _fresh_name() -> str:
    return f".unfinished-{secrets.token_hex(8)}"


def _unfinished(folder: int) -> list[tuple[str, str | None]]:
    """Temporary names in a folder, each with the final name of a folder being built."""
    return [(name, match[1]) for name in os.listdir(folder) if (match := UNFINISHED.fullmatch(name))]


def _clear(name: str, folder: int) -> bool:
    """Remove an unfinished file or folder of a killed process; False if its process still runs."""
    try:
        handle = os.open(name, os.O_RDONLY | NEITHER_LINK_NOR_WAIT, dir_fd=folder)
    except OSError:  # already gone, or a link, which is not ours
        return True
    try:
        if not _lock(handle):
            return False
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Take the lock, which the system releases when the process ends, even if killed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def read_text(path: Path) -> str:
    """Text of a UTF-8 or (by its BOM) UTF-16 file.

    Line endings become \\n.
    """
    refuse_pointer(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:  # with or without a byte order mark
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not {'UTF-16' if wide else 'UTF-8'} text ({error}). Save it as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """JSON object in a file of a model folder.

    UserError if it is missing, unreadable or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing: is {path.parent} the right folder?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return value
