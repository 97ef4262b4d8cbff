"""Every write of this package: it survives a kill, a full disk and a power cut, and changes no file but its own.

A file is the old one or the new one, never a half: until it is whole it has a fresh random name. Folders are opened, and
what is in them is reached from there without following links (see `links`), so that in a stranger's folder, too, nothing
outside is touched. What a kill left unfinished is cleared by the next process that writes into the same folder.
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
NEITHER_LINK_NOR_WAIT = os.O_NOFOLLOW | os.O_NONBLOCK  # to open a pipe would wait for its other end
_cleared: set[tuple[int, int]] = set()  # the folders that this process has cleared, by device and inode


def write_atomically(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, all or nothing. Half a character, of a file's name say, is written as JSON escapes it."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends well and disappears when it does not.

    The folder is made if need be. `durable`: then it is safely on the disk; what is made again anyway need not be.
    """
    with writing(path), _folder_of(path) as folder:
        name = _fresh_name()
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | NEITHER_LINK_NOR_WAIT, 0o666, dir_fd=folder)
        try:
            with open(handle, "w+b") as file:
                with suppress(OSError):  # not every system of files has locks
                    _lock(handle)  # until it has its name: else another process might clear it away
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
    """`path`, made if need be, to read, cut and add to. UserError if what is written would be in another file as well."""
    with writing(path), _folder_of(path) as folder, _open_own(path, os.O_APPEND, folder) as file:
        if os.fstat(file.fileno()).st_nlink != 1:
            raise UserError(
                f"{path} was not written to, since the same file has another name elsewhere (a hard link) and would change "
                "there too. Put a copy of it in its place, or remove it."
            )
        yield file


def claim(path: Path) -> BinaryIO | None:
    """Hold the lock file `path` until what is returned is closed, or the process ends. None if another process holds it.

    Nothing is written to it, whatever it is.
    """
    with writing(path), _folder_of(path) as folder:
        file = _open_own(path, 0, folder)
        if _lock(file.fileno()):
            return file
        file.close()
        return None


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the block ends well and disappears when it does not.

    At `path` there may be an empty folder. UserError if another process is making one.
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
                    raise UserError(f"Another process is writing {path}. Wait until it ends, or name another place.")
                yield path.with_name(name)
                with writing(path):
                    sync(folder)
                    os.replace(name, path.name, src_dir_fd=parent, dst_dir_fd=parent)
                    sync(parent)
        except BaseException:
            shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
            raise


def make_folder(path: Path) -> None:
    """Make a folder, and those above it. UserError if the system refuses, or a link is in the way."""
    with writing(path):
        try:
            unlinked(path).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{path} could not be written: a file is where a folder has to be. Name another place, or move the file away."
            ) from None


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there. Of a link the link, not what it leads to."""
    if os.path.lexists(path):
        unlinked(path.parent)
        with writing(path), _opened(path.parent) as folder:
            if stat.S_ISDIR(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(path.name, dir_fd=folder)
            else:
                os.unlink(path.name, dir_fd=folder)


def sync(descriptor: int) -> None:
    """Make a file's content, or a folder's list of names, durable before anything that relies on it is written.

    On a Mac, where `fsync` stops at the drive's cache, by the call that goes through it.
    """
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def save_pretrained(made: Any, folder: Path) -> None:
    """Write a tokenizer or processor into `folder` as transformers does, but whole files, and through no link."""
    with TemporaryDirectory() as own:
        with writing(folder, Exception):  # Rust's tokenizers report a failed write by no other name
            made.save_pretrained(own)
        for file in sorted(Path(own).iterdir()):
            with file.open("rb") as content, replacing(folder / file.name) as copy:
                shutil.copyfileobj(content, copy)


@contextmanager
def writing(path: Path, refused: type[Exception] | tuple[type[Exception], ...] = (OSError, RuntimeError)) -> Iterator[None]:
    """A write that the system refuses (disk full, no permission) becomes a UserError that names `path`.

    MLX reports a failed write as a RuntimeError.
    """
    try:
        yield
    except refused as error:
        becomes = [(match and match[1]) or part for part in path.parts for match in [UNFINISHED.fullmatch(part)]]
        raise UserError(
            f"{Path(*becomes)} could not be written: {error}. What was finished before is untouched: "
            "make room or give permission, then run the same command again and it goes on from there."
        ) from error


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    """The folder that `path` is to be in, made if need be, opened."""
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
    """A file of ours, made if need be, as it is."""
    handle = os.open(path.name, os.O_RDWR | os.O_CREAT | flags | NEITHER_LINK_NOR_WAIT, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} was not written to, since it is no file. Remove it, or name another place.")
    return open(handle, "a+b" if flags else "r+b")


def _fresh_name() -> str:
    return f".unfinished-{secrets.token_hex(8)}"


def _unfinished(folder: int) -> list[tuple[str, str | None]]:
    """What has a name that is given here, and the name that it was to get, of a folder."""
    return [(name, match[1]) for name in os.listdir(folder) if (match := UNFINISHED.fullmatch(name))]


def _clear(name: str, folder: int) -> bool:
    """Remove what a process left unfinished when it was killed. False if one is still at it."""
    try:
        handle = os.open(name, os.O_RDONLY | NEITHER_LINK_NOR_WAIT, dir_fd=folder)
    except OSError:  # gone by now, or a link, which is none of ours
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
    """The system lets go of it when the process ends, however it does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def read_text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 where its first bytes say so. Lines end in \\n, whatever they end in there."""
    refuse_pointer(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:  # with or without the mark that some Windows programs put first
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
    """A JSON object from a model folder; a missing or damaged file is the user's to mend."""
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
