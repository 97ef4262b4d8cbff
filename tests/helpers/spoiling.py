"""Sound inputs, and ways to spoil them.

`make_inputs` writes a folder of photos, pairs, prompts, a model and a CLIP; `make_runs` adds a method's recipe, a whole run of
it (whole/METHOD) and one that is all but finished (runs/METHOD), and for SeVa an adapter. A test spoils a copy.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import original_layout
from PIL import Image
from sample_photos import write_photos
from small_runs import SETTINGS, write_recipe

from mlx_visalign.cli.main import main
from mlx_visalign.convert.peft import to_peft
from mlx_visalign.data.records import Pair, Prompt, write_jsonl
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.models.lora import LoRASettings, attach

Spoil = Callable[[Path], object]
ALWAYS = ("photos", "pairs.jsonl", "prompts.jsonl", "truth.json", "words.json", *(f"{method}.yaml" for method in SETTINGS))


@dataclass(frozen=True)
class Case:
    """A command given in a copy of the kit that was spoilt; `says`: what the message must hold, file and line among it."""

    name: str
    command: str
    says: str | tuple[str, ...]
    spoil: Spoil = lambda folder: None


def make_runs(kit: Path, method: str) -> None:
    assert main(f"run -c {write_recipe(method, kit)} --output {kit}/runs/{method}".split()) == 0
    shutil.copytree(kit / "runs" / method, kit / "whole" / method)
    (kit / "runs" / method / "report.json").unlink()
    if method == "seva":
        shutil.copytree(kit / "runs/seva/adapter", kit / "adapter")


def make_inputs(kit: Path) -> None:
    """What takes no time: everything but runs and an adapter."""
    write_photos(kit / "photos", 4)
    pairs = [
        Pair(f"p{index}", (f"photos/{index}.png",), "What is there?", "A red circle.", f"A blue star and {index} crosses.")
        for index in range(4)
    ]
    write_jsonl(kit / "pairs.jsonl", pairs)
    write_jsonl(kit / "prompts.jsonl", [Prompt(f"q{i}", f"photos/{i}.png", "What is there?", "describe") for i in range(4)])
    (kit / "truth.json").write_text('{"photos/0.png": ["dog"], "photos/1.png": ["cat"]}')
    (kit / "words.json").write_text('[{"canonical": "zebu", "phrases": ["zebu"]}]')
    shutil.copytree(TINY, kit / "model")
    shutil.copytree(TINY.parent / "clip", kit / "clip")


def make_all_inputs(folder: Path) -> Path:
    """Those of `make_inputs`, and what converters read: an adapter, ours and PEFT's, and a LLaVA in its authors' layout."""
    make_inputs(folder)
    policy = load("tiny")
    attach(policy.model, LoRASettings(2), mx.random.key(0))
    policy.save_adapter(folder / "adapter", method="dpo", round=1)
    to_peft(folder / "adapter", folder / "peft")
    original_layout.write_folder(folder / "original", original_layout.authors_tensors(original_layout.authors_model()))
    original_layout.write_tokenizer(folder / "original")
    assert main(f"convert llava_original --hf-path {folder}/original --mlx-path {folder}/mlx".split()) == 0
    for method in SETTINGS:
        write_recipe(method, folder)
    return folder


def copy_kit(kit: Path, folder: Path, command: str) -> None:
    """What every command may need, and what this one names."""
    folder.mkdir(exist_ok=True)
    named = [word for word in command.replace("=", " ").split() if word.startswith(("model", "clip", "adapter", "runs/"))]
    for name in {*ALWAYS, *(word.partition("@")[0] for word in named)}:
        if (kit / name).is_dir():
            shutil.copytree(kit / name, folder / name)
        elif (kit / name).exists():
            shutil.copy(kit / name, folder / name)


# -- ways to spoil a file ---------------------------------------------------------------------------------------------


def put(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def gone(name: str) -> Spoil:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def link(name: str, target: str = "/") -> Spoil:
    """A link to somewhere else in the place of a file or folder."""

    def spoil(folder: Path) -> None:
        if (folder / name).exists():
            gone(name)(folder)
        (folder / name).symlink_to(target)

    return spoil


def cut(name: str, share: float = 0.5) -> Spoil:
    """The file's beginning only."""
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def line(name: str, number: int, text: str) -> Spoil:
    """Another line in the place of one of a file's, or behind its last."""

    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[number - 1 : number] = [text]
        (folder / name).write_text("\n".join(lines) + "\n")

    return spoil


def row(name: str, number: int, *drop: str, **changes: Any) -> Spoil:
    """A row of a JSON lines file with other values in some columns, or without some."""

    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        values = {key: value for key, value in (json.loads(lines[number - 1]) | changes).items() if key not in drop}
        line(name, number, json.dumps(values))(folder)

    return spoil


def twice(name: str, number: int) -> Spoil:
    """A file with one of its lines once more at its end."""

    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*lines, lines[number - 1]]) + "\n")

    return spoil


def field(name: str, place: str, value: Any) -> Spoil:
    """A JSON file with another value at a dotted place; None leaves it out."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        *outer, last = place.split(".")
        inner = content
        for part in outer:
            inner = inner[part]
        inner.pop(last, None)
        if value is not None:
            inner[last] = value
        (folder / name).write_text(json.dumps(content))

    return spoil


def tensors(name: str, change: Callable[[dict[str, mx.array]], dict[str, mx.array]]) -> Spoil:
    """A safetensors file with other tensors."""

    def spoil(folder: Path) -> None:
        arrays, about = mx.load(str(folder / name), return_metadata=True)
        changed = change(dict(arrays))
        mx.eval(changed)
        mx.save_safetensors(str(folder / name), changed, metadata=about)

    return spoil


def recipe(text: str) -> Spoil:
    return put("bad.yaml", text)


def picture(kind: str) -> Spoil:
    return lambda folder: Image.new("RGB", (9, 9)).save(folder / "photos/1.png", kind)


def png(width: int, height: int) -> bytes:
    """A small file that says it is a PNG of this size."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(999))),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# A list whose last entry would be billions of words, were its aliases written out.
LAUGHS = "\n- &a0 [ha, ha]\n" + "".join(f"- &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12))


def nothing_left(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    return {"other": mx.zeros(3)}


def first_changed(change: Callable[[mx.array], mx.array]) -> Callable[[dict[str, mx.array]], dict[str, mx.array]]:
    def changed(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        first = min(arrays)
        return arrays | {first: change(arrays[first])}

    return changed
