"""Which links are followed, in one place, since a folder may come from a stranger, links and all.

Written: a place that the user names may lie behind links of the user's own (/tmp on a Mac is one), but what is named may not
be a link itself, and nothing below it may be: `named` is asked where a name comes in, `unlinked` at every write.
Read: a link inside a folder may lead anywhere inside it, and out of it only within `following_links`. A file that the user
names may be a link. The hub's cache is a folder of links, which may lead anywhere in the folder of their repository.
"""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_visalign.utils.errors import UserError, listed

REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")  # of the hub's cache; a file is REPOSITORY/snapshots/REVISION/FILE
_followed = False


@contextmanager
def following_links(followed: bool = True) -> Iterator[None]:
    """Within the block, of the whole process, links that lead out of a folder that is read are followed or are not."""
    global _followed
    before, _followed = _followed, followed
    try:
        yield
    finally:
        _followed = before


def are_followed() -> bool:
    return _followed


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a link that is not to be followed takes `path` out of `folder`, or of the hub's repository that it is of."""
    if _followed:
        return False
    home = Path(os.path.realpath(folder))
    for place in (home, *home.parents):
        if place.parent.name == "snapshots" and REPOSITORY.fullmatch(place.parent.parent.name):
            home = place.parent.parent
            break
    return not Path(os.path.realpath(path)).is_relative_to(home)


def check_links(folder: Path) -> Path:
    """`folder`, if no link in it or in a folder below leads out of it, or such links are followed. UserError names them."""
    out: list[Path] = []
    for parent, folders, files in os.walk(folder):
        paths = (Path(parent, name) for name in sorted(folders + files))
        out += [path for path in paths if path.is_symlink() and leads_out(path, folder)]
    if out:
        told = [f"{path.relative_to(folder)}, to {os.readlink(path)}" for path in out]
        advice = "Remove them, put what they lead to in their place, or add --follow-links if you made them yourself."
        raise UserError(listed(f"In {folder} links lead out of it", told, advice))
    return folder


def named(path: Path | str) -> Path:
    """The place to write to that the user calls `path`: the links above it resolved. UserError if it is a link itself."""
    path = Path(path)
    if path.is_symlink():
        raise _refused(path, path)
    above = os.path.realpath(path.parent)
    return path if above == os.path.abspath(path.parent) else Path(above, path.name)


def unlinked(path: Path) -> Path:
    """`path`, if neither it nor a folder above it is a link. Else UserError."""
    here = Path(os.path.abspath(path))
    if os.path.realpath(path) != str(here):
        link = next((place for place in (*reversed(here.parents), here) if place.is_symlink()), here)
        raise _refused(path, link)
    return path


def _refused(path: Path, link: Path) -> UserError:
    way = "it" if link == path else link
    return UserError(
        f"{path} was not written to, since {way} is a link, to {os.path.realpath(link)}. Remove the link, or name the place "
        "that you mean."
    )


def image_inside(root: Path, name: str, where: str, elsewhere: str | None = None) -> Path:
    """The file that a row of data calls `name`, which must lie in the folder `root`: untrusted rows read nothing else.

    Names are compared, and a link may not lead out either, unless links are followed. `elsewhere` is the folder that errors
    advise to name: nothing is read from there before the user has done so.
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
    if leads_out(path, root):
        raise UserError(
            f"{where}: the image {name} is behind a link that leads out of {root}, to {os.path.realpath(path)}. Put the image "
            "in its place, or add --follow-links if you made the link yourself."
        )
    return path
