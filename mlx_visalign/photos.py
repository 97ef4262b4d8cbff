"""A folder of photos as people have them: hidden files, duplicates, formats we do not read, a damaged one here and there."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mlx_visalign.errors import UserError
from mlx_visalign.images import open_image
from mlx_visalign.progress import progress, say

READ = (".jpg", ".jpeg", ".png", ".webp")
NOT_READ = (".heic", ".heif")


@dataclass(frozen=True)
class Photo:
    """An image to ask about. `id` tells its content, whatever its name; `image` is its path, as records have it."""

    id: str
    image: str


def find_photos(folder: Path, limit: int | None = None, skip_bad: bool = False) -> list[Photo]:
    """The different images in a folder and the folders below, in the order of their content's hash: the first `limit`.

    That order is random as far as the content goes, so a limit takes a fair sample, and it does not change with names.
    Hidden files (a Mac's `._` files too) and `*.photoslibrary` are passed over, copies of an image count once. Every
    image is decoded here, so that none fails hours later: one that cannot be is a UserError, or with `skip_bad` left out.
    """
    files = _image_files(folder)
    by_content = {_digest(path): path for path in reversed(files)}  # of copies, the first by name stays
    if not by_content:
        raise UserError(f"There is no JPEG, PNG or WebP image in {folder} or a folder below it.")
    photos = [Photo(name, str(by_content[name])) for name in sorted(by_content)]
    return _decodable(photos, min(limit or len(photos), len(photos)), skip_bad)


def held_out(images: Iterable[str]) -> set[str]:
    """The tenth of the images that is not trained on, by their ids: the same tenth in every run, whatever its seed.

    None of fewer than ten.
    """
    order = sorted(set(images), key=lambda name: hashlib.sha256(f"held out {name}".encode()).digest())
    return set(order[: len(order) // 10])


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name the folder that holds your images.")
    found: list[Path] = []
    for parent, folders, names in os.walk(os.path.abspath(folder), onerror=_denied):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".photoslibrary"))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    unread = sum(path.suffix.lower() in NOT_READ for path in found)
    if unread:
        say(f"{unread} HEIC photos are left out, for only JPEG, PNG and WebP are read. Export them as JPEG to use them.")
    return [path for path in found if path.suffix.lower() in READ]


def _denied(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} may not be read ({error.strerror}). On a Mac, allow your terminal to read it under System "
        "Settings > Privacy & Security > Files and Folders."
    ) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except PermissionError as error:
        _denied(error)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _decodable(photos: list[Photo], count: int, skip_bad: bool) -> list[Photo]:
    """The first `count` photos that can be decoded; the damaged ones are counted in one sentence."""
    good: list[Photo] = []
    problems: list[str] = []
    with progress("looking at the images", count, unit="image") as bar:
        for photo in photos:
            if len(good) == count:
                break
            try:
                open_image(photo.image)
                good.append(photo)
                bar.advance(1)
            except UserError as error:
                problems.append(str(error))
    if problems and not (skip_bad and good):
        raise UserError(
            f"{len(problems)} of the images cannot be used. The first is {problems[0]} Mend or remove them"
            + (", for none is left." if skip_bad else ", or leave them out with --skip-bad.")
        )
    if problems:
        say(f"{len(problems)} images that cannot be used are left out. The first is {problems[0]}")
    return good
