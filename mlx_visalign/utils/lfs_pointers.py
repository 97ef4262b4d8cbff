"""Git LFS pointers: what a clone made without git-lfs has in a large file's place, three lines of text."""

from pathlib import Path

from mlx_visalign.utils.errors import UserError

FIRST_LINES = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def is_pointer(path: Path) -> bool:
    """Whether the file is a pointer. False for what is no file or cannot be read: that is for others to say."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(64).startswith(FIRST_LINES)
    except (OSError, ValueError):
        return False


def pointer_said(path: Path) -> str:
    """That it is one, and the cure."""
    return (
        f"{path} is a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull` in its folder, or "
        "download it again with `hf download`."
    )


def refuse_pointer(path: Path) -> None:
    """Raise the `UserError` that names a pointer, for where a file has just turned out not to be what it should."""
    if is_pointer(path):
        raise UserError(pointer_said(path))
