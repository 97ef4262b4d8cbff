"""A folder of photos as people have them: hidden files, copies, formats we do not read, a damaged one here and there."""

import glob
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from mlx_visalign.data.images import HEIC_FIX, check_image, formats_read, reads_heic
from mlx_visalign.utils.console import progress, say
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.links import leads_out

READ = (".jpg", ".jpeg", ".png", ".webp", ".gif")
HEIC = (".heic", ".heif", ".hif")
NOT_READ = (".avif", ".bmp", ".dng", ".jxl", ".tif", ".tiff")
LIBRARIES = (".photoslibrary", ".photolibrary")  # of Photos, and of iPhoto before it
IN_ICLOUD = ".icloud"  # .IMG_1.jpg.icloud stands for an IMG_1.jpg that is not on this Mac
LEAD_OUT = "links that lead out of the folder: {:,} (to read what they lead to: --follow-links)"
EXPORT = "export its photos, or name the folder originals inside it"
ALIKE = 0.7  # the same photo in other sizes and qualities has 0.68 and more, bursts mostly too; different ones at most 0.55
STEPS = 16  # with fewer an image is too flat to be told from another
BLOCK = 2048

Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Photo:
    """An image to ask about. `id` tells its content, whatever its name; `image` is its path, as records have it.

    look  its `images.difference_hash`, where photos that look alike are to be kept together
    """

    id: str
    image: str
    look: bytes = field(default=b"", repr=False)


def places(images: Images) -> dict[Path, Path | None]:
    """The files and folders that `images` names. None for each that is named itself, else the folder it was found in.

    A pattern that no shell has expanded ("photos/*.jpg") stands for what it matches. UserError where there is nothing.
    """
    found: dict[Path, Path | None] = {}
    for name in names_of(images):
        there = os.path.lexists(name)
        matching = [name] if there else sorted(glob.glob(name, recursive=True))
        if not matching:
            what = "nothing that matches" if glob.has_magic(name) else "no file or folder"
            raise UserError(f"images: there is {what} {name}.")
        top = None if there else Path(*takewhile(lambda part: not glob.has_magic(part), Path(name).parts))
        found |= {Path(os.path.abspath(match)): top for match in matching}
    return found


def names_of(images: Images) -> list[str]:
    return [str(images)] if isinstance(images, str | Path) else [str(name) for name in images]


def called(images: Images) -> str:
    """What `images` names, for a sentence."""
    names = names_of(images)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def find_photos(images: Images, limit: int | None = None, skip_bad: bool = False) -> list[Photo]:
    """The different images in folders and those below them, in the order of their content's hash: the first `limit`.

    `images` names folders, files, which are taken for images whatever their names, or patterns (see `places`).
    That order is random as far as the content goes, so a limit takes a fair sample, and it does not change with names.
    Hidden files (a Mac's `._` files too), Photos libraries, links to folders and links that lead out of the folder are
    passed over, copies of an image count once. Every image is decoded here, so that none fails hours later: one that cannot
    be is a UserError, or with `skip_bad` left out. One sentence says how many there are, and how many are left out and why.
    """
    found, folder = _Found(), called(images)
    for place, top in places(images).items():
        if top is not None and leads_out(place, top):
            found.left_out[LEAD_OUT] += 1
        elif place.is_dir():
            _search(place, found)
        elif top is None:
            found.files.append(place)  # what it is shows when it is opened
        else:
            _sort_in(place, top, found)
    by_content = _by_content(found)
    if not by_content and not found.problems:
        raise UserError(f"There is no {formats_read()} image in {folder} or a folder below it.{found.left_out_said()}")
    photos = [Photo(name, str(by_content[name])) for name in sorted(by_content)]
    good = _decodable(photos, min(limit or len(photos), len(photos)), found.problems)
    if found.problems and not (skip_bad and good):
        cure = "Mend or remove them" + (", for none is left." if skip_bad else ", or leave them out with --skip-bad.")
        raise UserError(listed(f"{len(found.problems)} of the images cannot be used", found.problems, cure), found.problems)
    count = f"{len(good):,} of {counted(len(photos), 'photo')}" if len(good) == limit else counted(len(good), "photo")
    if found.problems:
        say(listed(f"{counted(len(found.problems), 'image')} left out that cannot be used", found.problems))
    say(f"{count} in {folder}.{found.left_out_said()}")
    return good


def held_out(images: Iterable[str], groups: Iterable[Collection[str]] = ()) -> set[str]:
    """The tenth of the images that is not trained on, by their ids: the same tenth in every run, whatever its seed.

    None of fewer than ten. Images of one group (see `near_identical`) are all held out or all trained on: a group that is
    larger than what is left of the tenth is trained on.
    """
    together = {name: group for group in groups for name in group}
    order = sorted(set(images), key=lambda name: hashlib.sha256(f"held out {name}".encode()).digest())
    kept: set[str] = set()
    for name in order:
        one = kept.union(together.get(name, (name,)))
        if len(one) <= len(order) // 10:
            kept = one
    return kept


def near_identical(photos: Sequence[Photo]) -> list[list[str]]:
    """The ids of photos that look the same, in groups: frames of a burst; copies in another size, quality or format.

    Two are alike where the cosine of their looks is at least 0.7, and a group is whoever is alike to any of it. Flat images,
    whose looks say too little, and photos without a look are in no group. Takes n^2 x 512 multiplications, as products of
    matrices: a second of one core for 10,000 photos and two minutes for 100,000, in 200 MB at most.
    """
    looks = {photo.id: photo.look for photo in photos if int.from_bytes(photo.look).bit_count() >= STEPS}
    ids = list(looks)
    group = list(range(len(ids)))  # of each the first of its group, or one that leads there

    def first(place: int) -> int:
        while group[place] != place:
            group[place] = place = group[group[place]]
        return place

    for one, other in _alike(list(looks.values())):
        low, high = sorted((first(one), first(other)))
        group[high] = low
    members: dict[int, list[str]] = {}
    for place, id in enumerate(ids):
        members.setdefault(first(place), []).append(id)
    return [some for some in members.values() if len(some) > 1]


def _alike(looks: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """The places of all two looks that are alike."""
    for top in range(0, len(looks), BLOCK):
        rows = _directions(looks[top : top + BLOCK])
        for left in range(0, top + 1, BLOCK):
            alike = rows @ _directions(looks[left : left + BLOCK]).T >= ALIKE
            for row, column in np.argwhere(alike).tolist():
                if left + column < top + row:
                    yield left + column, top + row


def _directions(looks: Sequence[bytes]) -> np.ndarray:
    """Looks as vectors of length 1."""
    bits = np.unpackbits(np.frombuffer(b"".join(looks), np.uint8)).reshape(len(looks), 2, -1)
    signs = bits[:, 0].astype(np.float32) - bits[:, 1]
    return signs / np.linalg.norm(signs, axis=1, keepdims=True)


def content_id(path: Path) -> str:
    """A file's content, told from others by 16 digits. UserError if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise UserError(f"{path}, which is no file.")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(_unreadable(path, error)) from error


def require_unchanged(contents: Mapping[str, str]) -> None:
    """UserError unless every image, by its path, still has the content that its `content_id` tells."""
    problems = []
    with progress("comparing the images with what they were", len(contents), unit="image") as bar:
        for image, content in contents.items():
            try:
                if content_id(Path(image)) != content:
                    problems.append(f"{image}, which has changed.")
            except UserError as error:
                problems.append(str(error))
            bar.advance(1)
    if problems:
        head = f"{len(problems)} of the {len(contents)} images that this run began with are gone or have changed"
        cure = "Put them back as they were, or begin another run with another --output."
        raise UserError(listed(head, problems, cure), problems)


@dataclass
class _Found:
    """What a folder holds: image files; how many others are left out, by the reason; what should be readable and is not."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def left_out_said(self) -> str:
        reasons = [reason.format(count) for reason, count in self.left_out.items()]
        if self.problems:
            reasons.append(f"{len(self.problems):,} that cannot be used")
        return f" Left out: {'; '.join(reasons)}." if reasons else ""


def _search(top: Path, found: _Found) -> None:
    if top.suffix.lower() in LIBRARIES:
        raise UserError(f"{top} is a Photos library, which holds previews of every photo too; {EXPORT}.")

    def denied(error: OSError) -> None:
        if error.filename == str(top):
            raise UserError(_unreadable(top, error)) from error
        found.problems.append(f"the folder {_unreadable(error.filename, error)}")

    for parent, folders, names in os.walk(top, onerror=denied):
        folders[:] = [name for name in sorted(folders) if _is_entered(Path(parent, name), found)]
        for name in sorted(names):
            _sort_in(Path(parent, name), top, found)


def _is_entered(folder: Path, found: _Found) -> bool:
    if folder.name.startswith("."):
        return False
    if folder.suffix.lower() in LIBRARIES:
        found.left_out[f"Photos libraries: {{:,}} ({EXPORT})"] += 1
        return False
    if folder.is_symlink():  # it may lead to where it is
        found.left_out["links to folders: {:,} (name such a folder itself)"] += 1
        return False
    return True


def _sort_in(path: Path, top: Path, found: _Found) -> None:
    """Put an image among the files, or say why not. What is hidden, or no image by its name, is not spoken of."""
    hidden = path.name.startswith(".")
    in_icloud = hidden and path.suffix == IN_ICLOUD
    kind = Path(path.stem if in_icloud else path.name).suffix.lower()
    if in_icloud and kind in READ + HEIC:
        found.left_out["{:,} that are still in iCloud (download them in the Finder)"] += 1
    elif hidden:
        return
    elif kind in HEIC and not reads_heic():
        found.left_out[f"{{:,}} HEIC (to read them: {HEIC_FIX})"] += 1
    elif kind in READ + HEIC and path.is_symlink() and leads_out(path, top):
        found.left_out[LEAD_OUT] += 1
    elif kind in READ + HEIC:
        found.files.append(path)
    elif kind in NOT_READ:
        found.left_out[f"{{:,}} {kind[1:].upper()} (export them as JPEG)"] += 1


def _by_content(found: _Found) -> dict[str, Path]:
    """The files by their content. Of copies, the first by name stays."""
    by_content: dict[str, Path] = {}
    with progress("reading the images", len(found.files), unit="image") as bar:
        for path in found.files:
            try:
                str(path).encode()  # for it is going to stand in records
                if by_content.setdefault(content_id(path), path) != path:
                    found.left_out["{:,} the same as another"] += 1
            except UnicodeEncodeError:
                found.problems.append(f"{os.fsencode(path)!r}, whose name is not UTF-8.")
            except UserError as error:
                found.problems.append(str(error))
            bar.advance(1)
    return by_content


def _decodable(photos: list[Photo], count: int, problems: list[str]) -> list[Photo]:
    """The first `count` photos that can be decoded; what is wrong with others on the way is added to `problems`."""
    good: list[Photo] = []
    with progress("looking at the images", count, unit="image") as bar:
        for photo in photos:
            if len(good) == count:
                break
            try:
                good.append(replace(photo, look=check_image(photo.image)))
                bar.advance(1)
            except UserError as error:
                problems.append(str(error))
    return good


def _unreadable(path: Path | str, error: OSError) -> str:
    cure = ""
    if isinstance(error, PermissionError):
        cure = (
            " Give yourself permission to read it; on a Mac, allow your terminal to, under System Settings > Privacy & "
            "Security > Files and Folders."
        )
    return f"{path}, which cannot be read ({error.strerror}).{cure}"
