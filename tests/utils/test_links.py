"""Which links are followed: those above what the user names, those that stay inside, and others only if that is wanted."""

import json
import os

import pytest
from PIL import Image

import mlx_visalign
from mlx_visalign.cli.main import main
from mlx_visalign.cli.parser import build_parser
from mlx_visalign.cli.recipe_flags import recipe_values
from mlx_visalign.data.image_folder import find_photos
from mlx_visalign.data.object_vocabulary import coco80
from mlx_visalign.evaluation.benchmark import listed_benchmark
from mlx_visalign.pipeline import api
from mlx_visalign.runs.run import Run
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import are_followed, check_links, following_links, image_inside, named, unlinked


@pytest.fixture
def folder(tmp_path):
    """A folder with a link to a file beside it, one to a folder beside it, and one that stays inside."""
    for place in ("folder/deeper", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    for colour, name in (("red", "folder/a.png"), ("blue", "elsewhere/b.png"), ("green", "elsewhere/c.png")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    (tmp_path / "folder/b.png").symlink_to("../elsewhere/b.png")
    (tmp_path / "folder/deeper/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder/deeper/a.png").symlink_to("../a.png")
    return tmp_path / "folder"


def test_every_link_that_leads_out_is_named_and_no_other(folder):
    with pytest.raises(UserError) as told:
        check_links(folder)
    said = " ".join(str(told.value).split())
    assert "b.png, to ../elsewhere/b.png" in said and f"deeper/more, to {folder.parent}/elsewhere" in said
    assert "a.png" not in said and said.endswith("add --follow-links if you made them yourself.")
    with following_links():
        assert check_links(folder) == folder
    (folder / "b.png").unlink()
    (folder / "deeper/more").unlink()
    assert check_links(folder) == folder


def test_a_link_that_leads_nowhere_or_to_itself_is_none_that_leads_in(folder):
    for name in ("b.png", "deeper/more"):
        (folder / name).unlink()
    (folder / "loop").symlink_to("loop")
    (folder / "nothing").symlink_to("deeper/nothing")
    assert check_links(folder) == folder
    (folder / "nowhere").symlink_to("../nowhere")
    with pytest.raises(UserError, match=r"lead out of it: nowhere, to \.\./nowhere\."):
        check_links(folder)


def test_a_named_folder_may_be_a_link(folder):
    (folder.parent / "mine").symlink_to(folder / "deeper")
    (folder / "deeper/more").unlink()
    (folder / "deeper/a.png").unlink()
    (folder / "deeper/c.png").symlink_to("d.png")
    assert check_links(folder.parent / "mine") == folder.parent / "mine"


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_the_hubs_cache_is_a_folder_of_links(tmp_path, kind):
    """What is not of the same repository stays outside, and so does all of it for a folder that only looks like it."""
    for name in (f"{kind}--me--one/blobs/1", f"{kind}--me--other/blobs/2", "snapshots/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    snapshot = tmp_path / f"{kind}--me--one/snapshots/0123abc"
    (snapshot / "images").mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (snapshot / "images/a.png").symlink_to("../../../blobs/1")
    assert check_links(snapshot) == snapshot
    assert image_inside(snapshot / "images", "a.png", "row 1") == snapshot / "images/a.png"
    (snapshot / "config.json").symlink_to(f"../../../{kind}--me--other/blobs/2")
    with pytest.raises(UserError, match=r"config\.json"):
        check_links(snapshot)
    lookalike = tmp_path / "folder/snapshots/0123abc"
    lookalike.mkdir(parents=True)
    (lookalike / "config.json").symlink_to("../../../snapshots/3")
    with pytest.raises(UserError, match=r"config\.json"):
        check_links(lookalike)


def test_photos_behind_links_are_left_out_and_counted(folder, capsys):
    assert len(find_photos(folder)) == 1
    assert "1 photo in" in (said := " ".join(capsys.readouterr().err.split()))
    assert "links that lead out of the folder: 1 (use --follow-links to read them)" in said
    with following_links():
        assert len(find_photos(folder)) == 2


@pytest.mark.parametrize(("pattern", "inside", "all_told"), [("*.png", 1, 2), ("**/*.png", 1, 3), ("deep*/*", 1, 3)])
def test_a_pattern_finds_nothing_behind_links(folder, capsys, pattern, inside, all_told):
    assert len(find_photos(folder / pattern)) == inside
    assert "links that lead out of the folder: " in capsys.readouterr().err
    with following_links():
        assert len(find_photos(folder / pattern)) == all_told


@pytest.mark.parametrize("name", ["b.png", "deeper/more/c.png"])
def test_a_row_about_an_image_behind_a_link(folder, name):
    (folder / "truth.json").write_text(json.dumps({name: ["cat"]}))
    with pytest.raises(UserError, match=rf"{name} is behind a link that leads out of .*elsewhere.*--follow-links"):
        listed_benchmark(folder / "truth.json", folder, coco80())
    with following_links():
        assert name in listed_benchmark(folder / "truth.json", folder, coco80()).pictures


def test_what_is_named_to_be_written_may_lie_behind_links_and_be_none(folder, monkeypatch):
    (folder.parent / "mine").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    assert named(folder / "new") == folder / "new" and str(named("folder/new")) == "folder/new"  # in the user's own words
    assert named("mine/new") == folder / "new"
    assert unlinked(named("mine/deeper/new")) == folder / "deeper/new"
    for link in ("mine", "folder/b.png", "folder/deeper/more"):
        with pytest.raises(UserError, match=rf"{link} was not written to, since it is a link to .*use the path"):
            named(link)
    with pytest.raises(UserError, match=r"folder/deeper/more/x was not written to, since \S*/folder/deeper/more is a link"):
        unlinked(folder / "deeper/more/x")


def test_links_in_a_run_are_refused_before_anything_is_read_or_written(folder, tmp_path):
    for make in (lambda: Run(folder), lambda: Run(tmp_path / "new", reuse=folder)):
        with pytest.raises(UserError, match="links lead out of it"):
            make()
    assert not (tmp_path / "new").exists() and sorted(os.listdir(folder)) == ["a.png", "b.png", "deeper"]


def test_the_adapter_that_a_runs_folder_stands_for_may_not_be_elsewhere(folder, tmp_path, capsys):
    (folder.parent / "elsewhere/adapter_config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/adapter").symlink_to(folder.parent / "elsewhere")
    assert main(["compare", "tiny", str(tmp_path / "run"), "--images", "tiny-world", "--output", str(tmp_path / "a.html")]) == 2
    assert "links lead out of it: adapter, to" in " ".join(capsys.readouterr().err.split())


def test_what_is_followed_is_no_setting_of_a_run():
    """A run goes on whether links are followed or not."""
    command = ["run", "seva", "--images", "photos"]
    parser = build_parser("")
    assert recipe_values(parser.parse_args([*command, "--follow-links"])) == recipe_values(parser.parse_args(command))


def test_from_python_links_are_followed_for_one_call(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "run_recipe", lambda *_: {"followed": are_followed()})
    named = {"model": "tiny", "images": "tiny-world", "max_images": 4, "output": tmp_path / "run"}
    assert api.align("seva", **named, follow_links=True) == {"followed": True}
    assert api.align("seva", **named) == {"followed": False}
    with mlx_visalign.following_links():
        assert api.align("seva", **named) == {"followed": True}
    assert not are_followed()
