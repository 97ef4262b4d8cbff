"""Finds the photos in a folder, with duplicates removed.

Folders are as users have them: hidden files, copies, unsupported formats, damaged files.
"""

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
LIBRARIES = (".photoslibrary", ".photolibrary")  # Apple Photos, and iPhoto before it
IN_ICLOUD = ".icloud"  # .IMG_1.jpg.icloud stands for an IMG_1.jpg that is not on this Mac
LEAD_OUT = "links that lead out of the folder: {:,} (use --follow-links to read them)"
EXPORT = "export its photos, or use the folder originals inside it"
ALIKE = 0.7  # measured: resized or recompressed copies reach 0.68 and more, bursts mostly too; different photos at most 0.55
STEPS = 16  # set bits; with fewer an image is too flat to compare
BLOCK = 2048

Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Photo:
    """An image to ask about.

    id     hash of its content (see `content_id`)
    image  its path, as in records
    look   its `images.difference_hash`, used to group photos that look alike
    """

    id: str
    image: str
    look: bytes = field(default=b"", repr=False)


def places(images: Images) -> dict[Path, Path | None]:
    """Files and folders that `images` names, patterns expanded.

    The value is the folder in which a pattern ("photos/*.jpg", unexpanded by the shell) found it, or None for a path named
    itself. UserError if nothing is there.
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
    """Short text for `images` in messages."""
    names = names_of(images)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def find_photos(images: Images, limit: int | None = None, skip_bad: bool = False) -> list[Photo]:
    """Distinct images in folders and subfolders, ordered by content hash.

    `images` names folders, patterns (see `places`) or files; a file named itself is read whatever its extension. `limit`
    takes the first ones: a random sample that does not depend on file names, since the order is that of the hashes.
    Hidden files (macOS `._` files too), Photos libraries, links to folders and links that lead out of the folder are
    skipped, and duplicates count once. Every image is decoded, so that none fails hours later; one that cannot be decoded
    is a UserError, or is skipped with `skip_bad`. A message says how many images were found, and how many skipped and why.
    """
    found, folder = _Found(), called(images)
    for place, top in places(images).items():
        if top is not None and leads_out(place, top):
            found.left_out[LEAD_OUT] += 1
        elif place.is_dir():
            _search(place, found)
        elif top is None:
            found.files.append(place)  # whatever its extension; decoding will tell
        else:
            _sort_in(place, top, found)
    by_content = _by_content(found)
    if not by_content and not found.problems:
        raise UserError(f"There is no {formats_read()} image in {folder} or a folder below it.{found.left_out_said()}")
    photos = [Photo(name, str(by_content[name])) for name in sorted(by_content)]
    good = _decodable(photos, min(limit or len(photos), len(photos)), found.problems)
    if found.problems and not (skip_bad and good):
        cure = "Fix or remove them" + (": none is left." if skip_bad else ", or leave them out with --skip-bad.")
        raise UserError(listed(f"{len(found.problems)} of the images cannot be used", found.problems, cure), found.problems)
    count = f"{len(good):,} of {counted(len(photos), 'photo')}" if len(good) == limit else counted(len(good), "photo")
    if found.problems:
        say(listed(f"{counted(len(found.problems), 'image')} left out that cannot be used", found.problems))
    say(f"{count} in {folder}.{found.left_out_said()}")
    return good


def held_out(images: Iterable[str], groups: Iterable[Collection[str]] = ()) -> set[str]:
    """Ids of the images held out from training.

    A tenth of all, the same tenth in every run, whatever the seed; none of fewer than ten images. Images of one group (see
    `near_identical`) are held out or trained on together: a group too large for the rest of the tenth is trained on.
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
    """Groups of ids of photos that look alike.

    Frames of a burst, or copies in another size, quality or format. Two photos are alike if the cosine of their looks is
    at least 0.7; groups are the connected components. Flat images, whose looks say too little, and photos without a look
    are in no group. Costs n^2 x 512 multiplications in matrix products: on one core a second for 10,000 photos and two
    minutes for 100,000, in at most 200 MB.
    """
    looks = {photo.id: photo.look for photo in photos if int.from_bytes(photo.look).bit_count() >= STEPS}
    ids = list(looks)
    group = list(range(len(ids)))  # union-find parents; the root is the first of a group

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
    """Index pairs (i < j) of looks that are alike."""
    for top in range(0, len(looks), BLOCK):
        rows = _directions(looks[top : top + BLOCK])
        for left in range(0, top + 1, BLOCK):
            alike = rows @ _directions(looks[left : left + BLOCK]).T >= ALIKE
            for row, column in np.argwhere(alike).tolist():
                if left + column < top + row:
                    yield left + column, top + row


def _directions(looks: Sequence[bytes]) -> np.ndarray:
    """Looks as unit vectors."""
    bits = np.unpackbits(np.frombuffer(b"".join(looks), np.uint8)).reshape(len(looks), 2, -1)
    signs = bits[:, 0].astype(np.float32) - bits[:, 1]
    return signs / np.linalg.norm(signs, axis=1, keepdims=True)


def content_id(path: Path) -> str:
    """Content hash of a file, 16 hex digits.

    UserError if it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            raise UserError(f"{path}, which is not a regular file.")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(_unreadable(path, error)) from error


def require_unchanged(contents: Mapping[str, str]) -> None:
    """UserError unless all images still have their content hash.

    `contents` maps paths to `content_id`s.
    """
    problems = []
    with progress("verifying images", len(contents), unit="image") as bar:
        for image, content in contents.items():
            try:
                if content_id(Path(image)) != content:
                    problems.append(f"{image}, which has changed.")
            except UserError as error:
                problems.append(str(error))
            bar.advance(1)
    if problems:
        head = f"{len(problems)} of the {len(contents)} images that this run began with are missing or have changed"
        cure = "Restore them, or start a new run with another --output."
        raise UserError(listed(head, problems, cure), problems)


@dataclass
class _Found:
    """Search result: image files, counts of skipped files by reason, and errors."""

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
    if folder.is_symlink():  # it may form a cycle
        found.left_out["links to folders: {:,} (name the folder itself to include it)"] += 1
        return False
    return True


def _sort_in(path: Path, top: Path, found: _Found) -> None:
    """Add an image to the files, or count why it is skipped. Hidden and other files are ignored."""
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
    """Files by content hash. Of duplicates, the first by name is kept."""
    by_content: dict[str, Path] = {}
    with progress("hashing images", len(found.files), unit="image") as bar:
        for path in found.files:
            try:
                str(path).encode()  # records will contain the path
                if by_content.setdefault(content_id(path), path) != path:
                    found.left_out["duplicates: {:,}"] += 1
            except UnicodeEncodeError:
                found.problems.append(f"{os.fsencode(path)!r}, whose name is not UTF-8.")
            except UserError as error:
                found.problems.append(str(error))
            bar.advance(1)
    return by_content


def _decodable(photos: list[Photo], count: int, problems: list[str]) -> list[Photo]:
    """The first `count` photos that can be decoded; errors on the way are added to `problems`."""
    good: list[Photo] = []
    with progress("decoding images", count, unit="image") as bar:
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
