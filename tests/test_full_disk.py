"""The disk is full at one place after another: one sentence each time, and in the end the same adapter as without it."""

import errno
import os
import re
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
from small_runs import SETTINGS
from spoiling import make_inputs

from mlx_visalign.cli import main

WRITES = os.O_WRONLY | os.O_RDWR


class FullDisk:
    """While `folder` is set, the first write there to a place that was not full before finds no room, nor does any after it.

    The system itself refuses (the largest size of a file is set to nothing), so that MLX's writes fail as Python's do; only
    a new folder is refused by hand. A place is a file's path with its numbers left out.
    """

    def __init__(self):
        self.folder, self.places, self.full = None, set(), False
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it anyway
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if self.folder is None:
            return
        if event == "open" and isinstance(args[0], str | os.PathLike) and args[2] & WRITES:
            self.meet(args[0])
        elif event == "os.mkdir" and self.meet(args[0]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def meet(self, path):
        path = Path(os.path.abspath(path))
        if self.full or not path.is_relative_to(self.folder) or path.name == ".lock":
            return False
        place = re.sub(r"\d+", "N", str(path.relative_to(self.folder)))
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
    made, save = FullDisk(), mx.save_safetensors

    def noted(file, arrays, metadata=None):
        if made.folder is not None:
            made.meet(file)
        save(file, arrays, metadata)

    mx.save_safetensors = noted
    yield made
    mx.save_safetensors = save


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
    assert refused > 0  # what all methods write is refused in the first one's run
    for file in ("adapter/adapters.safetensors", "adapter/adapter_config.json", "prompts.jsonl", "before.jsonl", "after.jsonl"):
        if (whole / file).exists():
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("train --data pairs.jsonl --iters 2 --adapter-path {}", marks=pytest.mark.slow),
        "compare tiny tiny --images tiny-world --count 1 --max-tokens 2 --output {}/page.html",
        "world draw --count 2 --output {}/scenes.png",
        "convert llava --hf-path model --mlx-path {}/mlx",
    ],
)
def test_another_command_whose_disk_is_full(command, disk, tmp_path, capsys, monkeypatch):
    make_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert until_done(disk, tmp_path / "out", command.format(tmp_path / "out").split(), capsys) > 0
