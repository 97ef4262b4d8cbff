"""A folder of photos: what counts as an image, in which order, and what is said about the rest."""

import os
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_visalign.data.image_folder import find_photos, held_out
from mlx_visalign.data.images import reads_heic
from mlx_visalign.utils.errors import UserError


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(["a.jpg", "b.JPEG", "deep/er/c.png", "d.webp"]):
        photo(tmp_path / name, seed)
    return tmp_path


def names(photos):
    return sorted(Path(photo.image).name for photo in photos)


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def no_heic(monkeypatch):
    """As where pillow-heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reads_heic.cache_clear()
    yield
    reads_heic.cache_clear()


def test_images_are_found_in_all_folders_and_nothing_else_is(folder, capsys):
    for index, hidden in enumerate(["._a.png", ".cache/x.png"], start=10):
        photo(folder / hidden, index)
    for name in ("notes.txt", ".DS_Store", "IMG_1.mov", "deep/IMG_1.AAE"):
        (folder / name).write_text("no image")
    assert names(find_photos(folder)) == ["a.jpg", "b.JPEG", "c.png", "d.webp"]
    assert last_line(capsys) == f"4 photos in {folder}."


def test_ids_and_order_depend_on_the_content_alone(folder, tmp_path_factory):
    before = find_photos(folder)
    os.rename(folder / "a.jpg", folder / "zz.jpg")
    elsewhere = tmp_path_factory.mktemp("moved") / "photos"
    os.rename(folder, elsewhere)
    assert [photo.id for photo in find_photos(elsewhere)] == [photo.id for photo in before]
    assert find_photos(elsewhere, limit=2) == find_photos(elsewhere)[:2]


def test_copies_count_once(folder, capsys):
    (folder / "copy of a.jpg").write_bytes((folder / "a.jpg").read_bytes())
    os.link(folder / "a.jpg", folder / "deep" / "a.jpg")
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    assert names(find_photos(folder)) == ["a.jpg", "b.JPEG", "c.png", "d.webp"]
    assert last_line(capsys) == f"4 photos in {folder}. Left out: duplicates: 3."


def test_one_sentence_says_what_is_left_out_and_why(folder, capsys, no_heic):
    photo(folder / "Mine.photoslibrary" / "originals" / "x.png", 11)
    (folder / "again").symlink_to(folder)
    for name in ("1.HEIC", "2.heic", "old.bmp", "scan.TIFF", ".IMG_7.HEIC.icloud", ".IMG_8.jpg.icloud", ".notes.txt.icloud"):
        (folder / name).touch()
    assert len(find_photos(folder, limit=3)) == 3
    said = last_line(capsys)
    assert said.startswith(f"3 of 4 photos in {folder}. Left out: ")
    assert sorted(said.partition("Left out: ")[2].removesuffix(".").split("; ")) == [
        "1 BMP (export them as JPEG)",
        "1 TIFF (export them as JPEG)",
        '2 HEIC (to read them: pip install "mlx-visalign[heic]")',
        "2 that are still in iCloud (download them in the Finder)",
        "Photos libraries: 1 (export its photos, or use the folder originals inside it)",
        "links to folders: 1 (name the folder itself to include it)",
    ]


def test_heic_photos_are_photos(folder, capsys):
    assert reads_heic()
    for seed, name in ((20, "x.HEIC"), (21, "y.heif")):
        photo(folder / name, seed)
    assert names(find_photos(folder)) == ["a.jpg", "b.JPEG", "c.png", "d.webp", "x.HEIC", "y.heif"]
    assert last_line(capsys) == f"6 photos in {folder}."


def test_names_of_all_kinds_stay_as_they_are(tmp_path):
    """Composed and decomposed accents (a Mac keeps either), case, quotes, lines, terminal codes, the longest name."""
    accents = [unicodedata.normalize(form, "Café.jpg") for form in ("NFC", "NFD")]
    odd = [
        "a.jpg",
        "A.jpg",
        "写真 ☀️.jpg",
        'it\'s "so".jpg',
        "two\nlines.jpg",
        "\x1b[31mred.jpg",
        f"{'x' * 250}.jpg",
        "1/a.jpg",
        "2/a.jpg",
    ]
    for seed, name in enumerate(accents + odd):
        photo(tmp_path / name, seed)
    found = [os.path.relpath(photo.image, tmp_path) for photo in find_photos(tmp_path)]
    assert sorted(found) == sorted(accents + odd)


def test_what_cannot_be_read_is_named_and_keeps_nobody_waiting(folder, capsys):
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    Path(os.fsdecode(bytes(folder) + b"/\xff.jpg")).touch()
    with pytest.raises(UserError, match=r"4 of the images cannot be used:\n.*gone\.jpg, which cannot be read") as told:
        find_photos(folder)
    assert [name in str(told.value) for name in ("loop.jpg", "pipe.jpg", "xff.jpg")] == [True] * 3
    assert len(find_photos(folder, skip_bad=True)) == 4
    assert "Left out: 4 that cannot be used." in last_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_and_a_folder_without_permission_are_named(folder):
    (folder / "a.jpg").chmod(0)
    (folder / "deep").chmod(0)
    with pytest.raises(
        UserError, match=r"(?s)2 of the images .* the folder .*deep, which cannot be read \(Permission denied\)"
    ):
        find_photos(folder)
    assert names(find_photos(folder, skip_bad=True)) == ["b.JPEG", "d.webp"]
    (folder / "deep").chmod(0o700)


def test_ten_thousand_photos(tmp_path, capsys):
    """Each of a content of its own: a JPEG with another number after its end."""
    whole = photo(tmp_path / "0.jpg", 0).read_bytes()
    for number in range(1, 10_000):
        (tmp_path / f"{number}.jpg").write_bytes(whole + b"%d" % number)
    started = time.process_time()
    assert len(find_photos(tmp_path)) == 10_000
    assert time.process_time() - started < 15  # 1.4 on one core
    said = capsys.readouterr().err.splitlines()
    lines = [sum(line.startswith(job) for line in said) for job in ("hashing images", "decoding images")]
    assert all(2 <= count <= 20 for count in lines), lines  # the first, the last, and one now and then
    assert said[-1] == f"10,000 photos in {tmp_path}."


def test_damaged_images_stop_it_or_are_counted_in_one_sentence(folder, capsys):
    for name in ("torn.png", "empty.jpg"):
        (folder / name).write_bytes((folder / "deep/er/c.png").read_bytes()[: 40 * (name == "torn.png")])
    with pytest.raises(UserError, match=r"(?s)2 of the images cannot be used:.*(torn|empty).*(torn|empty).*--skip-bad"):
        find_photos(folder)
    assert names(find_photos(folder, skip_bad=True)) == ["a.jpg", "b.JPEG", "c.png", "d.webp"]
    said = capsys.readouterr().err
    assert said.count("torn.png") == said.count("empty.jpg") == said.count("Left out: 2 that cannot be used.") == 1


def test_a_folder_of_damaged_images_only_is_an_error_in_any_case(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UserError, match="none is left"):
        find_photos(tmp_path, skip_bad=True)


def test_no_folder_and_no_images_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no JPEG, PNG, WebP, GIF or HEIC image in .* below it\.$"):
        find_photos(tmp_path)


def test_a_folder_with_nothing_but_others_says_what_they_are(tmp_path, no_heic):
    (tmp_path / "1.heic").touch()
    (tmp_path / "Mine.photoslibrary").mkdir()
    with pytest.raises(UserError, match=r"no JPEG, PNG, WebP or GIF image .* Left out: Photos libraries: 1 .*; 1 HEIC .*pip"):
        find_photos(tmp_path)


def test_a_photos_library_itself_is_refused_and_its_originals_are_read(tmp_path):
    library = tmp_path / "Mine.photoslibrary"
    photo(library / "originals" / "0" / "x.png", 0)
    photo(library / "resources" / "derivatives" / "x.png", 1)
    with pytest.raises(UserError, match=r"is a Photos library.*originals"):
        find_photos(library)
    assert names(find_photos(library / "originals")) == ["x.png"]


def test_a_denied_folder_is_named_with_the_setting_that_allows_it(tmp_path, monkeypatch):
    def deny(path, topdown=True, onerror=None, followlinks=False):
        onerror(PermissionError(1, "Operation not permitted", str(path)))

    monkeypatch.setattr(os, "walk", deny)
    with pytest.raises(UserError, match=r"Operation not permitted.*Privacy & Security"):
        find_photos(tmp_path)


def test_a_denied_folder_below_may_be_left_out(folder, monkeypatch, capsys):
    walk = os.walk

    def deny(path, onerror):
        onerror(PermissionError(13, "Permission denied", str(Path(path, "deep"))))
        yield from ((parent, folders, names) for parent, folders, names in walk(path) if "deep" not in parent)

    monkeypatch.setattr(os, "walk", deny)
    with pytest.raises(UserError, match=r"1 of the images .* the folder .*deep, which cannot be read \(Permission denied\)"):
        find_photos(folder)
    assert names(find_photos(folder, skip_bad=True)) == ["a.jpg", "b.JPEG", "d.webp"]
    said = capsys.readouterr().err
    assert "1 image left out that cannot be used: the folder " in said and "Left out: 1 that cannot be used." in said


@pytest.mark.parametrize(("images", "kept"), [(9, 0), (10, 1), (19, 1), (600, 60)])
def test_a_tenth_is_held_out(images, kept):
    ids = [f"image-{index}" for index in range(images)]
    assert len(held_out(ids)) == kept
    assert held_out(ids[::-1]) == held_out(ids * 2) == held_out(ids)
