"""Detects Git LFS pointer files.

Three lines of text in place of a large file, as a clone made without git-lfs has them.
"""

from pathlib import Path

from mlx_visalign.utils.errors import UserError

FIRST_LINES = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer.

    False if it is not a regular file or cannot be read; the caller reports that.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(64).startswith(FIRST_LINES)
    except (OSError, ValueError):
        return False


def pointer_said(path: Path) -> str:
    """Error message for a pointer file, with what to do."""
    return (
        f"{path} is a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull` in its folder, or "
        "download it again with `hf download`."
    )


def refuse_pointer(path: Path) -> None:
    """UserError if the file is a pointer.

    Called where a file has turned out to be invalid, for a better message.
    """
    if is_pointer(path):
        raise UserError(pointer_said(path))
