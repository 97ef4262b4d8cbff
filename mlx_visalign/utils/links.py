"""Symlink policy: which links are followed.

A folder may be untrusted and contain malicious links, so all rules are in this module.
Writing: the path that the user names may have links above it (/tmp on a Mac is one), but may not be a link itself, and
nothing below it may be: `named` checks a path where it comes in, `unlinked` at every write.
Reading: a link inside a folder may lead anywhere inside it, and out of it only within `following_links`. A file that the
user names may be a link. The Hub's cache consists of links, which may lead anywhere in the folder of their repository.
"""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_visalign.utils.errors import UserError, listed

# Folders of the Hub's cache, where a file is REPOSITORY/snapshots/REVISION/FILE.
REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
_followed = False


@contextmanager
def following_links(followed: bool = True) -> Iterator[None]:
    """Allow or forbid links that lead out of folders.

    Applies to reading, and to the whole process, within the block.
    """
    global _followed
    before, _followed = _followed, followed
    try:
        yield
    finally:
        _followed = before


def are_followed() -> bool:
    return _followed


def leads_out(path: Path, folder: Path) -> bool:
    """Whether `path` leaves `folder` by a forbidden link.

    In the Hub's cache it may lead anywhere in the folder of its repository.
    """
    if _followed:
        return False
    home = Path(os.path.realpath(folder))
    for place in (home, *home.parents):
        if place.parent.name == "snapshots" and REPOSITORY.fullmatch(place.parent.parent.name):
            home = place.parent.parent
            break
    return not Path(os.path.realpath(path)).is_relative_to(home)


def check_links(folder: Path) -> Path:
    """`folder`, or UserError naming links that lead out of it.

    Subfolders are searched too. Links pass within `following_links`.
    """
    out: list[Path] = []
    for parent, folders, files in os.walk(folder):
        paths = (Path(parent, name) for name in sorted(folders + files))
        out += [path for path in paths if path.is_symlink() and leads_out(path, folder)]
    if out:
        links = [f"{path.relative_to(folder)}, to {os.readlink(path)}" for path in out]
        advice = "Remove them, replace them by their targets, or add --follow-links if you made them yourself."
        raise UserError(listed(f"In {folder} links lead out of it", links, advice))
    return folder


def named(path: Path | str) -> Path:
    """Output path with the links above it resolved.

    UserError if `path` is a link itself.
    """
    path = Path(path)
    if path.is_symlink():
        raise _refused(path, path)
    above = os.path.realpath(path.parent)
    return path if above == os.path.abspath(path.parent) else Path(above, path.name)


def unlinked(path: Path) -> Path:
    """`path`; UserError if it or a parent is a link."""
    here = Path(os.path.abspath(path))
    if os.path.realpath(path) != str(here):
        link = next((place for place in (*reversed(here.parents), here) if place.is_symlink()), here)
        raise _refused(path, link)
    return path


def _refused(path: Path, link: Path) -> UserError:
    way = "it" if link == path else link
    return UserError(
        f"{path} was not written to, since {way} is a link to {os.path.realpath(link)}. Remove the link, or use the path "
        "you mean."
    )


def image_inside(root: Path, name: str, where: str, elsewhere: str | None = None) -> Path:
    """Path of the image `name`, which must lie in `root`.

    Rows of data are untrusted and must not read other files, neither by their name nor by a link (unless links are followed).
    `elsewhere` is the folder that errors suggest for --images; nothing is read from it.
    """
    root = Path(os.path.abspath(root))
    path = Path(os.path.normpath(root / name))
    advice = "Name the folder of the images with --images."
    if elsewhere is not None:
        advice = f"Add --images {shlex.quote(elsewhere)}, the folder of this run's images."
    if not path.is_relative_to(root):
        raise UserError(f"{where}: the image {name} lies outside {root}. {advice}")
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise UserError(f"{where}: there is no image {path}. {advice}")
    if leads_out(path, root):
        raise UserError(
            f"{where}: the image {name} is behind a link that leads out of {root}, to {os.path.realpath(path)}. Replace the "
            "link by the image, or add --follow-links if you made the link yourself."
        )
    return path
