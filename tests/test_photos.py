"""A folder of photos: what counts as an image, in which order, and what is said about the rest."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_visalign.errors import UserError
from mlx_visalign.photos import find_photos, held_out


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


def test_images_are_found_in_all_folders_and_nothing_else_is(folder):
    for index, hidden in enumerate(["._a.png", ".cache/x.png", "Photos.photoslibrary/x.png"], start=10):
        photo(folder / hidden, index)
    (folder / "notes.txt").write_text("no image")
    assert names(find_photos(folder)) == ["a.jpg", "b.JPEG", "c.png", "d.webp"]


def test_ids_and_order_depend_on_the_content_alone(folder, tmp_path_factory):
    before = find_photos(folder)
    os.rename(folder / "a.jpg", folder / "zz.jpg")
    elsewhere = tmp_path_factory.mktemp("moved") / "photos"
    os.rename(folder, elsewhere)
    assert [photo.id for photo in find_photos(elsewhere)] == [photo.id for photo in before]
    assert find_photos(elsewhere, limit=2) == find_photos(elsewhere)[:2]


def test_copies_count_once(folder):
    (folder / "copy of a.jpg").write_bytes((folder / "a.jpg").read_bytes())
    assert names(find_photos(folder)) == ["a.jpg", "b.JPEG", "c.png", "d.webp"]


def test_damaged_images_stop_it_or_are_counted_in_one_sentence(folder, capsys):
    for name in ("torn.png", "empty.jpg"):
        (folder / name).write_bytes((folder / "deep/er/c.png").read_bytes()[: 40 * (name == "torn.png")])
    with pytest.raises(UserError, match=r"2 of the images cannot be used.*(torn\.png|empty\.jpg).*--skip-bad"):
        find_photos(folder)
    assert names(find_photos(folder, skip_bad=True)) == ["a.jpg", "b.JPEG", "c.png", "d.webp"]
    assert capsys.readouterr().err.count("2 images that cannot be used are left out") == 1


def test_a_folder_of_damaged_images_only_is_an_error_in_any_case(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UserError, match="none is left"):
        find_photos(tmp_path, skip_bad=True)


def test_heic_photos_are_counted_with_the_cure(folder, capsys):
    (folder / "IMG_1.HEIC").touch()
    find_photos(folder)
    assert "1 HEIC photos are left out" in capsys.readouterr().err


def test_no_folder_and_no_images_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no JPEG, PNG or WebP image"):
        find_photos(tmp_path)


def test_a_denied_folder_is_named_with_the_setting_that_allows_it(tmp_path, monkeypatch):
    def deny(path, topdown=True, onerror=None, followlinks=False):
        onerror(PermissionError(1, "Operation not permitted", str(path)))

    monkeypatch.setattr(os, "walk", deny)
    with pytest.raises(UserError, match=r"Operation not permitted.*Privacy & Security"):
        find_photos(tmp_path)


@pytest.mark.parametrize(("images", "kept"), [(9, 0), (10, 1), (19, 1), (600, 60)])
def test_a_tenth_is_held_out(images, kept):
    ids = [f"image-{index}" for index in range(images)]
    assert len(held_out(ids)) == kept
    assert held_out(ids[::-1]) == held_out(ids * 2) == held_out(ids)
