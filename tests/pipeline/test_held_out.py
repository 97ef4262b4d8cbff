"""What is held out is so by content: no photo that is trained on is, or looks like, one that is not."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sample_photos import write_photos

from mlx_visalign import methods
from mlx_visalign.data.image_folder import Photo, find_photos, held_out, near_identical
from mlx_visalign.data.images import check_image, difference_hash
from mlx_visalign.data.records import Prompt
from mlx_visalign.pipeline.prompts_stage import ask, images_of_run
from mlx_visalign.runs.recipe import Recipe, find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import split
from mlx_visalign.utils.errors import UserError


def view(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A made-up photo: light and dark at every scale, as in real ones."""
    rng, image = np.random.default_rng(seed), np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24, 48):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / cells**0.8
    return Image.fromarray((image / image.max() * 255).astype(np.uint8))


def moved(image: Image.Image, share: float, degrees: float = 0) -> Image.Image:
    """The next frame of a burst: the same view a little to the side."""
    (width, height), edge = image.size, 0.05
    box = (width * (edge + share), height * (edge + share / 2), width * (1 - edge + share), height * (1 - edge + share / 2))
    return image.rotate(degrees, Image.Resampling.BICUBIC).crop(tuple(map(round, box)))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


SAME = {
    "half the size": lambda image: image.resize((160, 120), Image.Resampling.LANCZOS),
    "twice the size": lambda image: image.resize((640, 480), Image.Resampling.BICUBIC),
    "another shape": lambda image: image.resize((200, 240)),
    "a poor JPEG": lambda image: as_jpeg(image, 30),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "without colour": lambda image: image.convert("L"),
}
BURST = {"half a per cent to the side": (0.005, 0), "a per cent to the side": (0.01, 0), "turned": (0.005, 1)}


def photos(**named: Image.Image) -> list[Photo]:
    return [Photo(name, f"{name}.jpg", difference_hash(image)) for name, image in named.items()]


@pytest.mark.parametrize("change", SAME)
def test_the_same_photo_in_other_clothes_is_near_identical(change):
    for seed in range(5):
        assert near_identical(photos(a=view(seed), b=view(100), c=SAME[change](view(seed)))) == [["a", "c"]]


@pytest.mark.parametrize("frame", BURST)
def test_frames_of_a_burst_are_near_identical(frame):
    for seed in range(5):
        assert near_identical(photos(a=moved(view(seed), 0), b=view(100), c=moved(view(seed), *BURST[frame]))) == [["a", "c"]]


def test_groups_are_whoever_is_like_any_of_them():
    image = view(3)
    frames = {f"f{number}": moved(image, number / 100) for number in range(5)}
    assert near_identical(photos(**frames)[::-1] + photos(other=view(4))) == [["f4", "f3", "f2", "f1", "f0"]]


def test_different_photos_scenes_and_flat_images_are_in_no_group():
    different = {f"view {seed}": view(seed) for seed in range(150)}
    scenes = {f"scene {scene.seed}": Image.fromarray(draw(scene)) for scene in split("unlabelled", 150)}
    flat = {f"flat {level}": Image.new("RGB", (90, 60), (level, level, 99)) for level in range(9)}
    ramps = {f"ramp {step}": Image.linear_gradient("L").point(lambda value, step=step: value // step) for step in (20, 30)}
    assert near_identical(photos(**different, **scenes, **flat, **ramps)) == []
    assert near_identical([Photo(f"scene-{number}", "a.png") for number in range(20)]) == []  # the tiny world's: no look


def test_more_photos_than_are_compared_at_once(monkeypatch):
    import mlx_visalign.data.image_folder

    monkeypatch.setattr(mlx_visalign.data.image_folder, "BLOCK", 4)
    every = {f"view {seed}": view(seed) for seed in range(13)}
    alike = {"near 1": as_jpeg(view(1), 40), "near 11": as_jpeg(view(11), 40), "near 12": SAME["half the size"](view(12))}
    assert near_identical(photos(**every, **alike)) == [[f"view {n}", f"near {n}"] for n in (1, 11, 12)]


def test_the_tenth_is_the_one_it_always_was():
    assert held_out(f"image-{index}" for index in range(40)) == {"image-11", "image-30", "image-33", "image-5"}


def test_a_group_is_held_out_or_trained_on_as_a_whole():
    ids = [f"image-{index}" for index in range(100)]
    alone = held_out(ids)
    groups = [["image-1", "image-2", "image-3"], [min(alone), "image-50", "image-51"], ids[60:90]]
    kept = held_out(ids, groups)
    assert len(kept) == 10 and all(kept.issuperset(group) or kept.isdisjoint(group) for group in groups)
    assert kept.issuperset(groups[1]) and kept.isdisjoint(groups[2])
    assert held_out(ids[:12], [ids[:12]]) == set()  # a burst and nothing else


def test_a_photo_is_looked_at_upright_and_once(tmp_path, monkeypatch):
    from mlx_visalign.data import images

    exif = Image.Exif()
    exif[0x0112] = 6
    view(1).save(tmp_path / "a.jpg", quality=95)
    view(1).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", exif=exif, quality=60)
    looks = [Photo(name, name, check_image(tmp_path / f"{name}.jpg")) for name in "ab"]
    assert near_identical(looks) == [["a", "b"]]
    monkeypatch.setattr(images, "_shown", lambda image: pytest.fail("it was decoded again"))
    assert [check_image(tmp_path / f"{name}.jpg") for name in "ab"] == [photo.look for photo in looks]
    monkeypatch.undo()
    view(2).save(tmp_path / "a.jpg")
    assert check_image(tmp_path / "a.jpg") != looks[0].look


# -- in a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty photos, of which 0 to 9 are there in three more forms."""
    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "a camera"
    for seed in range(30):
        view(seed).save(folder / f"{seed}.jpg", quality=90)
    for seed in range(10):
        view(seed).save(folder / f"{seed}-exif.jpg", quality=90, exif=exif)
        SAME["half the size"](view(seed)).save(folder / f"{seed}-half.png")
        view(seed).save(folder / f"{seed}-poor.webp", quality=40)
    return folder


def plan(**values):
    return make_plan(find_recipe("seva"), methods.find, "laptop", {"model": "tiny", **values}).recipe


def sides(recipe: Recipe, run: Path) -> tuple[set[str], set[str]]:
    """The names of the images that are trained on, and of those that are held out."""
    with Run(run) as begun:
        trained, kept = ask(recipe, begun)
    return {Path(one.image).name for one in trained}, {Path(one.image).name for one in kept}


def views(names: set[str]) -> set[str]:
    return {name.split(".")[0].split("-")[0] for name in names}


def test_no_view_of_a_folder_is_on_both_sides(folder, tmp_path, capsys):
    trained, kept = sides(plan(images=str(folder)), tmp_path / "run")
    assert len(trained | kept) == 60 and len(kept) == 6 and views(trained).isdisjoint(views(kept))
    assert "40 near-identical photos in 10 groups (bursts, or copies" in capsys.readouterr().err
    assert sides(plan(images=str(folder), seed=7), tmp_path / "other") == (trained, kept)


def test_no_view_of_a_prompts_file_is_on_both_sides(folder, tmp_path, capsys):
    """Under names of all kinds; a copy to the last bit too."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(folder.iterdir()):
        (photos / path.name).write_bytes(path.read_bytes())
    for seed in range(10, 30):
        (photos / f"{seed}-copy.jpg").write_bytes((folder / f"{seed}.jpg").read_bytes())
    rows = [Prompt(path.name, f"photos/{path.name}", "Why?", "describe").to_row() for path in sorted(photos.iterdir())]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, kept = sides(plan(prompts=str(file)), tmp_path / "run")
    assert len(trained | kept) == 80 and kept and views(trained).isdisjoint(views(kept))
    assert "40 near-identical photos in" in capsys.readouterr().err


def test_a_folder_without_near_identical_photos_says_nothing_of_them(tmp_path, capsys):
    folder = write_photos(tmp_path / "photos", 20)
    ids = {photo.id: Path(photo.image).name for photo in find_photos(folder)}
    assert sides(plan(images=str(folder)), tmp_path / "run")[1] == {ids[name] for name in held_out(ids)}
    assert "near-identical" not in capsys.readouterr().err


def test_the_tiny_world_is_held_out_by_its_scenes(tmp_path, capsys):
    _, kept = sides(plan(images="tiny-world", max_images=20), tmp_path / "run")
    scenes = [f"scene-{scene.seed}" for scene in split("unlabelled", 20)]
    assert kept == {f"{name}.png" for name in held_out(scenes)} and len(kept) == 2
    assert "near-identical" not in capsys.readouterr().err


# -- files and several folders --------------------------------------------------------------------------------------------


def test_files_patterns_and_several_folders_are_images_too(folder, tmp_path, capsys):
    more = write_photos(tmp_path / "more", 3)
    (tmp_path / "photo without an ending").write_bytes((folder / "0.jpg").read_bytes())
    given = [str(folder / "1.jpg"), str(folder / "2.jpg"), str(tmp_path / "photo without an ending"), str(more)]
    assert len(find_photos(given)) == 6
    assert capsys.readouterr().err.splitlines()[-1] == f"6 photos in {given[0]} and 3 more."
    assert len(find_photos(f"{folder}/*.jpg")) == 40 and len(find_photos([f"{folder}/?.jpg", str(folder / "3.jpg")])) == 10
    assert len(find_photos(f"{tmp_path}/**/*.png")) == 3
    assert len(find_photos([str(folder / "1.jpg"), folder / "1.jpg"])) == 1
    odd = tmp_path / "odd [1]*.png"
    odd.write_bytes((more / "0.png").read_bytes())
    assert [photo.image for photo in find_photos(str(odd))] == [str(odd)]  # what is there is no pattern


def test_what_is_no_image_among_files_is_named(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    given = [str(folder / "1.jpg"), str(tmp_path / "notes.txt")]
    with pytest.raises(UserError, match=r"notes\.txt: expected a JPEG"):
        find_photos(given)
    assert len(find_photos(given, skip_bad=True)) == 1
    with pytest.raises(UserError, match=r"images: there is no file or folder .*gone\.jpg"):
        find_photos([*given, str(tmp_path / "gone.jpg")])
    with pytest.raises(UserError, match=r"images: there is nothing that matches .*\*\.jpeg"):
        find_photos(f"{tmp_path}/*.jpeg")


def test_a_pattern_finds_what_a_folder_has_and_no_link_out_of_it(folder, tmp_path, capsys):
    place = write_photos(tmp_path / "photos", 2)
    (place / "out.png").symlink_to(folder / "0-half.png")
    (place / "notes.txt").write_text("no image")
    assert len(find_photos(f"{place}/*")) == 2
    assert "links that lead out of the folder: 1" in capsys.readouterr().err


def test_a_run_remembers_where_its_images_were(folder, tmp_path):
    several = (str(folder / "1.jpg"), str(folder / "2.jpg"))
    for number, (given, kept, found) in enumerate(
        (
            (str(folder), str(folder), str(folder)),
            (several, list(several), str(folder)),
            (f"{folder}/2*.jpg", f"{folder}/2*.jpg", str(folder)),
        )
    ):
        run = tmp_path / str(number)
        recipe = plan(images=given)
        first = sides(recipe, run)
        assert sides(recipe, run) == first
        assert json.loads((run / "prompts.settings.json").read_text())["images"] == kept
        assert images_of_run(run) == found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"images": ["a", "tiny-world"], "max_images": 3}, "tiny-world cannot be combined"),
        ({"images": ["a", "b"], "prompts": "p.jsonl"}, "With --prompts, name one folder"),
    ],
)
def test_several_images_where_one_folder_is_meant(values, said):
    with pytest.raises(UserError, match=said):
        plan(**values)
