"""Links planted wherever a command writes, in folders that come from a stranger: nothing outside is ever touched.

Which names a command writes to is found by tracing it, temporaries included: here their names are not random, so that a
stranger could guess them.
"""

import itertools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_hub import Hub
from small_runs import SETTINGS
from tracing import listing, tracing

from mlx_visalign.cli.main import main
from mlx_visalign.reporting import upload as uploading

# What is named there, and what the stranger has a hand in, ends each command.
COMMANDS = {
    "draw": "world draw --count 1 --output out/scenes.png",
    "llava_original": "convert llava_original --hf-path original --mlx-path out/mlx",
    "to peft": "convert peft --adapter-path adapter --output out/peft",
    "fuse": "fuse --no-probe --model model --adapter-path adapter --mlx-path out/fused",
    "upload": "upload --upload-repo me/adapter --path adapter",
    "llava": "convert llava --hf-path model --mlx-path out/mlx",
    "clip": "convert clip --hf-path clip --mlx-path out/clip",
    "export": "convert export --layout classic --mlx-path mlx --hf-path out/hf",
    "export_original": "convert export --layout original --mlx-path mlx --hf-path out/hf",
    "from peft": "convert peft --adapter-path peft --output out/adapter",
    "judge": "judge --model tiny --images photos --max-tokens 4 --output out/judge",
    "compare": "compare tiny tiny --images tiny-world --count 1 --max-tokens 2 --output out/page.html",
}
TRAIN = (
    "train --model tiny --data pairs.jsonl --iters 2 --batch-size 2 --set grad_accumulation_steps=1 --adapter-path out/adapter"
)
RUNS = {method: f"run -c {method}.yaml --max-images 6 --output out/run" for method in SETTINGS}
READ = {
    "generate": "generate --image photos/0.png --max-tokens 2 --model model --adapter-path adapter",
    "check": "check --data pairs.jsonl --model model",
    "a dry run": "run seva --model model --prompts prompts.jsonl --output out --dry-run",
}
LINKS = ("file", "folder", "dangling")


@dataclass
class Place:
    """inputs: what commands read, and find again before each attempt. outside: what they must not touch."""

    inputs: Path
    outside: Path
    folder: Path
    give: Callable[[str], tuple[int, str]]

    def tidy(self) -> None:
        """Bring the folder back to the inputs alone."""
        for path in self.folder.iterdir():
            if path.name in ("out", "adapter"):
                drop(path)
        shutil.copytree(self.inputs / "adapter", self.folder / "adapter")

    def names(self, words: str) -> tuple[list[str], set[str]]:
        """What the command writes to, in order, but for what the user named on the way there; and what of it it adds to."""
        with tracing(self.folder) as tracer:
            code, said = self.give(words)
        assert code == 0, said
        named = words.split()[-1]
        return [name for name in tracer.names if not Path(named).is_relative_to(name) or name == named], tracer.kept

    def state(self) -> dict[str, object]:
        """All that is outside. A folder's own date tells of files that came and went."""
        paths = [self.outside, *self.outside.rglob("*")]
        return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}

    def plant(self, name: str, kind: str) -> None:
        path = self.folder / name
        drop(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "hard link":
            os.link(self.outside / "canary.txt", path)
        else:
            path.symlink_to(self.outside / {"file": "canary.txt", "folder": "folder", "dangling": "new"}[kind])

    def is_harmless(self, words: str) -> bool:
        """Give the command where something is planted. Was it refused? Nothing outside may have changed in any case."""
        before = self.state()
        code, said = self.give(words)
        assert self.state() == before
        assert code in (0, 2) and "Traceback" not in said, said
        if code == 2:
            assert sum(line.startswith("visalign ") for line in said.splitlines()) == 1, said
        return code == 2


def drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@pytest.fixture
def place(inputs, tmp_path, monkeypatch, capsys):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "folder/deeper").mkdir(parents=True)
    for name in ("canary.txt", "folder/notes.txt", "folder/deeper/model.safetensors"):
        (outside / name).write_text("mine\n")
    shutil.copytree(inputs, folder)
    monkeypatch.setattr(uploading, "HfApi", Hub)
    monkeypatch.chdir(folder)

    def give(words: str) -> tuple[int, str]:
        numbers = itertools.count()
        monkeypatch.setattr(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
        capsys.readouterr()
        return main(words.split()), capsys.readouterr().err

    return Place(inputs, outside, folder, give)


def everywhere(place: Place, words: str, plants: Iterable[tuple[str, str]]) -> int:
    """Give the command with each of the plants alone. How many were refused."""
    refused = 0
    for name, kind in plants:
        place.tidy()
        place.plant(name, kind)
        refused += place.is_harmless(words)
    return refused


@pytest.mark.parametrize("name", COMMANDS)
def test_a_link_wherever_a_command_writes(name, place):
    names, _ = place.names(COMMANDS[name])
    assert len(names) >= 2 and COMMANDS[name].split()[-1] in str(names)
    assert everywhere(place, COMMANDS[name], zip(names, itertools.cycle(LINKS), strict=False)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_link_wherever_a_command_writes(name, place):
    words = COMMANDS[name]
    names, _ = place.names(words)
    plants = [*itertools.product(names, LINKS), *((name, "hard link") for name in names)]
    assert everywhere(place, words, plants) > 0
    assert everywhere(place, f"{words} --follow-links" if name != "draw" else words, plants) > 0


def test_a_link_wherever_a_training_writes(place):
    """At once, for the folder is read too; and where that is allowed, at the write."""
    names, kept = place.names(TRAIN)
    assert {"out/adapter/metrics.jsonl", "out/adapter/pairs.partial.jsonl", "out/adapter/.lock"} <= kept
    assert everywhere(place, TRAIN, zip(names, itertools.cycle(LINKS), strict=False)) == len(names)
    first = ("config.yaml", "doctor.json", "pairs.settings.json")
    plants = [(f"out/adapter/{file}", kind) for file, kind in zip(first, itertools.cycle(LINKS), strict=False)]
    assert everywhere(place, f"{TRAIN} --follow-links", plants) == len(plants)
    hard = [("out/adapter/pairs.partial.jsonl", "hard link"), ("out/adapter/.lock", "hard link")]
    assert everywhere(place, TRAIN, hard) == 1


def test_a_link_wherever_a_run_writes(place):
    names, _ = place.names(RUNS["seva"])
    assert everywhere(place, RUNS["seva"], zip(names, itertools.cycle(LINKS), strict=False)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_a_link_at_every_write_of_a_run_that_follows_links(method, place):
    """Refused at one name after another, the run goes on in between, so that each is met where it is written."""
    words = f"{RUNS[method]} --follow-links"
    names, kept = place.names(RUNS[method])
    of_a_kind = {re.sub(r"\d+", "N", name): name for name in names if ".unfinished-" not in name}
    plants = [*zip(of_a_kind.values(), itertools.cycle(LINKS), strict=False), *((name, "hard link") for name in sorted(kept))]
    place.tidy()
    refused = 0
    for name, kind in plants:
        path, aside = place.folder / name, place.folder / "aside"
        if path.exists():
            path.rename(aside)
        place.plant(name, kind)
        refused += place.is_harmless(words)
        drop(path)
        if aside.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(path)
        if (place.folder / "out/run/report.json").exists():
            place.tidy()
    assert refused > len(plants) / 2


@pytest.mark.parametrize("name", ["draw", "to peft", "upload"])
def test_a_link_above_what_is_named_is_the_users_own(name, place, tmp_path):
    """As /tmp on a Mac is, or a folder of runs on another disk."""
    (tmp_path / "disk").mkdir()
    (place.folder / "adapter").rename(tmp_path / "disk/adapter")
    (place.folder / "mine").symlink_to(tmp_path / "disk")
    words = COMMANDS[name].replace("out/", "mine/").replace(" adapter", " mine/adapter")
    assert place.give(words)[0] == 0
    assert len(list((tmp_path / "disk").iterdir())) == 1 + (name != "upload")
    assert (tmp_path / "disk/adapter/README.md").exists() == (name == "upload")


def test_what_reads_writes_nothing(place):
    for words in READ.values():
        before = listing(place.folder)
        assert place.give(words)[0] == 0
        assert listing(place.folder) == before, words


@pytest.mark.parametrize("name", READ)
def test_what_links_lead_to_outside_is_read_only_if_that_is_wanted(name, place, tmp_path):
    model = "model/tokenizer.json" if "--model" in READ[name] else "adapter/adapter_config.json"
    shutil.move(place.folder / model, tmp_path / "elsewhere")
    (place.folder / model).symlink_to(tmp_path / "elsewhere")
    code, said = place.give(READ[name])
    assert code == 2 and "--follow-links" in said and "tokenizer.json" in said
    assert place.give(f"{READ[name]} --follow-links")[0] == 0
