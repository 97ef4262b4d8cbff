"""The disk is full at one place after another: one sentence each time, and in the end the same adapter as without it."""

import errno
import os
import re
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_hub import Hub
from small_runs import SETTINGS
from tracing import absolute, listing
from transformers import PreTrainedTokenizerBase

from mlx_visalign.cli.main import main
from mlx_visalign.reporting import upload as uploading
from mlx_visalign.utils import files


class FullDisk:
    """While `folder` is set, the first write there to a place that was not full before finds no room, nor does any after it.

    The system itself refuses (the largest size of a file is set to nothing), so that native writes fail as Python's do; only
    a new folder is refused by hand. A place is a file's path with its numbers left out.
    """

    def __init__(self):
        self.folder, self.places, self.full = None, set(), False
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it anyway
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if self.folder is not None and event == "os.mkdir" and self.meet(absolute(args[0], args[2])):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def meet(self, path):
        path = Path(os.path.abspath(path))
        if self.folder is None or self.full or not path.is_relative_to(self.folder) or path.name == ".lock":
            return False
        place = re.sub(r"[0-9a-f]{16}|\d+", "N", str(path.relative_to(self.folder)))
        self.full = place not in self.places
        self.places.add(place)
        if self.full:
            limit(0)
        return self.full

    @contextmanager
    def fills(self, folder):
        self.folder, self.full = folder, False
        try:
            yield
        finally:
            self.folder = None
            limit(resource.RLIM_INFINITY)


def limit(size):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size == resource.RLIM_INFINITY else size, hard))


@pytest.fixture(scope="module")
def machine():
    """What this package writes asks `files.unlinked` first; transformers writes a tokenizer by itself."""
    made = FullDisk()

    def noted(path):
        if not path.is_dir():
            made.meet(path)
        return unlinked(path)

    def saved(tokenizer, folder, *arguments, **named):
        made.meet(Path(folder, "tokenizer"))
        return save_pretrained(tokenizer, folder, *arguments, **named)

    unlinked, save_pretrained = files.unlinked, PreTrainedTokenizerBase.save_pretrained
    files.unlinked, PreTrainedTokenizerBase.save_pretrained = noted, saved
    yield made
    files.unlinked, PreTrainedTokenizerBase.save_pretrained = unlinked, save_pretrained


@pytest.fixture
def disk(machine, request):
    """With room again everywhere; but the runs of several methods share the places that were full."""
    if "method" not in request.fixturenames:
        machine.places.clear()
    return machine


def until_done(disk, folder, command, capsys):
    """Give the command again and again, each time with another place full. How many times it was refused."""
    refused = 0
    while True:
        with disk.fills(folder):
            code = main(command)
        said = capsys.readouterr().err
        if not disk.full:
            assert code == 0, said
            return refused
        refused += 1
        assert code == 2 and "Traceback" not in said, said
        assert said.count(f"visalign {command[0]}") == 1 and str(folder) in said, said


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_a_run_whose_disk_is_full_everywhere_once(method, kit, disk, tmp_path, capsys):
    recipe, whole, folder = kit / f"{method}.yaml", kit / "whole" / method, tmp_path / "run"
    refused = until_done(disk, folder, ["run", "-c", str(recipe), "--output", str(folder)], capsys)
    assert refused > 0 or method != min(SETTINGS)  # what all methods write is refused in the first one's run
    for file in ("adapter/adapters.safetensors", "adapter/adapter_config.json", "prompts.jsonl", "before.jsonl", "after.jsonl"):
        if (whole / file).exists():
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("train --model tiny --data pairs.jsonl --iters 2 --adapter-path {}", marks=pytest.mark.slow),
        "compare tiny tiny --images tiny-world --count 1 --max-tokens 2 --output {}/page.html",
        "judge --model tiny --images photos --max-tokens 4 --output {}",
        "world draw --count 2 --output {}/scenes.png",
        "convert llava --hf-path model --mlx-path {}/mlx",
        "convert llava_original --hf-path original --mlx-path {}/mlx",
        "convert clip --hf-path clip --mlx-path {}/clip",
        "convert export --layout classic --mlx-path mlx --hf-path {}/hf",
        "convert export --layout original --mlx-path mlx --hf-path {}/hf",
        "convert peft --adapter-path adapter --output {}/peft",
        "fuse --no-probe --model model --adapter-path adapter --mlx-path {}/fused",
    ],
)
def test_another_command_whose_disk_is_full(command, disk, inputs, tmp_path, capsys, monkeypatch):
    """Nothing half is left, and in the end it is what it would have been at once."""
    monkeypatch.chdir(inputs)
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert main(command.format(whole).split()) == 0
    assert until_done(disk, out, command.format(out).split(), capsys) > 0
    found, expected = ({str(file.relative_to(top)): file for file in top.rglob("*")} for top in (out, whole))
    assert found.keys() == expected.keys()
    for name, file in found.items():
        if file.suffix in (".safetensors", ".png", ".jinja") or file.name == "tokenizer.json":
            assert file.read_bytes() == expected[name].read_bytes(), name


def test_a_model_card_that_finds_no_room(disk, inputs, tmp_path, capsys, monkeypatch):
    """It is written into the user's own folder, which stays as it was."""
    shutil.copytree(inputs / "adapter", tmp_path / "adapter")
    monkeypatch.setattr(uploading, "HfApi", Hub)
    with disk.fills(tmp_path / "adapter"):
        assert main(f"upload --upload-repo me/adapter --path {tmp_path}/adapter".split()) == 2
    assert "adapter/README.md could not be written" in capsys.readouterr().err.replace("\n", "")
    assert listing(tmp_path / "adapter").keys() == listing(inputs / "adapter").keys()
