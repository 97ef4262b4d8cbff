"""Writes: all or nothing, no file but its own, and what a kill left behind is cleared by the next process."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from mlx_visalign.utils import files
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import appending, building, claim, remove, replacing, save_pretrained, write_atomically

KILLED = """
import os, signal
from pathlib import Path
from mlx_visalign.utils.files import building, replacing
with {block}:
    os.kill(os.getpid(), signal.SIGKILL)
"""
LEFT = ".unfinished-0123456789abcdef"


@pytest.mark.parametrize(
    "block", ["replacing(Path('a.txt')) as file, open('b.txt', 'w')", "building(Path('a')) as folder, open(folder / 'b', 'w')"]
)
def test_what_a_kill_left_is_cleared_by_the_next_process(block, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), *sys.path]))
    done = subprocess.run([sys.executable, "-c", KILLED.format(block=block)], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(files.UNFINISHED.fullmatch(name) for name in os.listdir(tmp_path))
    write_atomically(tmp_path / "c.txt", "")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".unfinished")]


def test_only_what_nobody_is_at_is_cleared_and_nothing_through_links(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "kept.txt").write_text("mine")
    (folder / f"{LEFT[:-1]}0").symlink_to(outside)
    (folder / f"{LEFT[:-1]}1-mlx").mkdir()
    (folder / f"{LEFT[:-1]}1-mlx/shards").symlink_to(outside)
    (folder / ".unfinished-of-mine").write_text("")
    os.link(outside / "kept.txt", folder / f"{LEFT[:-1]}2")
    (folder / f"{LEFT[:-1]}3").write_text("")
    with (folder / f"{LEFT[:-1]}3").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_atomically(folder / "a.txt", "a")
    assert sorted(os.listdir(folder)) == [f"{LEFT[:-1]}0", f"{LEFT[:-1]}3", ".unfinished-of-mine", "a.txt"]
    assert (outside / "kept.txt").read_text() == "mine"


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as file:
        file.write(b"new")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), building(tmp_path / "b") as folder:
        write_atomically(folder / "c.txt", "new")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_another_name_of_a_file_keeps_what_it_was(tmp_path):
    """What is replaced is another file then; what would be added to is refused, and a lock is only held."""
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("a.txt", "b.jsonl", ".lock"):
        os.link(tmp_path / "mine.txt", tmp_path / name)
    write_atomically(tmp_path / "a.txt", "a")
    with pytest.raises(UserError, match=r"b\.jsonl was not written to.*hard link.*Put a copy"), appending(tmp_path / "b.jsonl"):
        pass
    lock = claim(tmp_path / ".lock")
    assert lock is not None and (tmp_path / "mine.txt").read_text() == "mine"
    assert claim(tmp_path / ".lock") is None
    lock.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_keeps_nobody_waiting(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(UserError, match=r"/a "):
        claim(tmp_path / "a")
    with pytest.raises(UserError, match=r"/a "), appending(tmp_path / "a"):
        pass


def test_of_a_link_the_link_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("")
    (tmp_path / "folder/below").mkdir(parents=True)
    for name in ("link", "folder/below/link"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    for name in ("link", "folder", "nothing", "no/thing"):
        remove(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["mine"] and os.listdir(tmp_path / "mine") == ["a.txt"]
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link"):
        remove(tmp_path / "link/a.txt")


def test_an_error_names_the_place_that_was_meant(tmp_path):
    with pytest.raises(UserError, match=r"^\S*/mlx/model\.safetensors could not be written: .*space"):  # noqa: SIM117
        with building(tmp_path / "mlx") as folder, replacing(folder / "model.safetensors"):
            raise OSError(28, "No space left on device")


def test_what_transformers_writes_goes_through_no_link(tmp_path):
    class Words:
        def save_pretrained(self, folder):
            for name in ("tokenizer.json", "tokenizer_config.json"):
                with open(os.path.join(folder, name), "w") as file:
                    file.write("{}")

    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/tokenizer.json").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"tokenizer\.json was not written to"):
        save_pretrained(Words(), tmp_path / "folder")
    assert (tmp_path / "mine").read_text() == "mine"
    save_pretrained(Words(), tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["tokenizer.json", "tokenizer_config.json"]
