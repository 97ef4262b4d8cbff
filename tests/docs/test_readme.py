"""The README files: what they link to is there, the commands in them exist, and what a reader must know first is said."""

import re
import shlex
from pathlib import Path

import pytest

from mlx_visalign import methods
from mlx_visalign.cli.parser import build_parser
from mlx_visalign.cli.recipe_flags import recipe_values
from mlx_visalign.convert.cli import build_parser as converters
from mlx_visalign.runs.recipe import make_plan

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "recipes/README.md", "convert/README.md", "tests/benchmarks/README.md"]
LARGEST = 200_000  # bytes of a picture


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a file."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def commands(file: str) -> list[str]:
    lines = re.findall(r"^(?: {4}|- `| {6}\$ | {4}\$ )(visalign .+)$", (ROOT / file).read_text(), re.M)
    return lines + re.findall(r"`(visalign (?:run|train|demo)[^`]*)`", (ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_what_it_links_to_is_there(file):
    text = (ROOT / file).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    assert links or file == "convert/README.md"
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize(("file", "command"), [(file, command) for file in FILES for command in commands(file)])
def test_the_command_is_one(file, command):
    words = shlex.split(command, comments=True)[1:]
    if words == ["train"] or words[-1] == "COMMAND":
        return  # named, not given
    if words[0] == "convert":
        converters(words[1]).parse_args(words[1:])
        return
    options = build_parser("0").parse_args(words)
    if words[0] == "run" and options.method is not None:
        values = recipe_values(options) | {"model": "tiny", "images": ".", "settings.clip": None}
        if not hasattr(methods.find(options.method).Settings(), "clip"):
            del values["settings.clip"]
        make_plan(methods.recipe_of(options.method), methods.find, options.preset, values)


def test_the_commands_were_found():
    assert len(commands("README.md")) > 8 and len(commands("recipes/README.md")) > 8


def test_its_picture_is_of_reasonable_size():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(pictures) == 1 and (ROOT / pictures[0]).stat().st_size < LARGEST


def test_make_targets_in_it_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for file in FILES:
        assert set(re.findall("make ([a-z]+)", (ROOT / file).read_text())) - {"the", "a", "it"} <= targets
    assert {"demo", "test"} <= set(re.findall("`make ([a-z]+)`", (ROOT / "README.md").read_text()))


def test_it_says_what_a_reader_must_know_first():
    text = (ROOT / "README.md").read_text()
    assert text.index("## Install") < text.index("Not yet run on a Mac") < text.index("## Align your own model")
    assert "has been measured on photos" in " ".join(text.split()) and "CLIP alone" in text
