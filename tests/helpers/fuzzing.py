"""Commands given files that are almost right, drawn at random: does each end well, or with one sentence?

`make_files` writes sound files of every kind, KINDS says how each kind is spoilt and which commands read it, and `attempt`
spoils one, gives the command, and tells what was wrong with how it ended. The same seed, kind and number are the same input.
"""

import contextlib
import io
import json
import os
import platform
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import matplotlib.font_manager  # noqa: F401 (it makes folders of its own when it is first imported)
import mlx.core as mx
import numpy as np
import original_layout
from mutations import (
    Mutate,
    any_of,
    as_bytes,
    as_json,
    as_jsonl,
    as_png,
    as_safetensors,
    as_text,
    as_torch,
    as_yaml,
    splice,
)
from PIL import Image, PngImagePlugin
from small_runs import SETTINGS, write_recipe
from spoiling import make_inputs, make_runs

from mlx_visalign.cli.main import main
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.models.chat_template import RENDERING
from mlx_visalign.models.lora import LoRASettings, adapters

HANG = 10  # seconds of processor time that a command may take
MEMORY = 1 << 30  # bytes that it may take above what the process had before: a photo of 64 megapixels takes 0.4e9
platform.platform()  # starts `uname` when it is first asked
PACKAGE = Path(sys.modules["mlx_visalign"].__path__[0]).parent


@dataclass(frozen=True)
class Kind:
    """Files of one kind, of which one is spoilt by `mutate`; commands that read it, of which one is given; its `share`.

    {file} in a command becomes the file's name, {folder} its folder's, and {method} that of a run it belongs to.
    """

    share: float
    mutate: Mutate
    files: tuple[str, ...]
    commands: tuple[str, ...]
    runs: bool = False  # the commands go on with a whole run's folder, which takes a while to make


@dataclass
class Outcome:
    """How a command ended. `wrong` says what was wrong with that, if anything; `place` tells one fault from another."""

    kind: str
    number: int
    file: str
    command: str
    code: object = None
    said: str = ""
    wrong: str = ""
    place: str = ""
    seconds: float = 0.0
    memory: int = 0
    data: bytes = field(default=b"", repr=False)


CHECK = (
    "check --model tiny --data {file}",
    "check --model tiny --data {file} --skip-bad",
    "train --model tiny --data {file} --adapter-path out --dry-run",
)
ANSWER = "generate --image photos/0.png --max-tokens 1"
LLAVA = ("convert llava --hf-path {folder} --mlx-path out", "convert llava --hf-path {folder} --mlx-path out -q --dry-run")
UPLOAD = "upload --path {folder} --upload-repo me/it --dry-run"
ADAPTER = (
    ANSWER + " --model tiny --adapter-path {folder}",
    "convert peft --adapter-path {folder} --output out",
    "fuse --model tiny --adapter-path {folder} --mlx-path out --no-probe",
    UPLOAD,
)
PEFT = ("convert peft --adapter-path {folder} --output out",)
AUTHORS = ("convert llava_original --hf-path {folder} --mlx-path out",)
CLIP = ("convert clip --hf-path {folder} --mlx-path out",)
DRY = "run seva --model tiny --output out --dry-run"

KINDS = {
    "pairs": Kind(
        0.22,
        as_jsonl,
        (
            "pairs.jsonl",
            "texts.jsonl",
            "llava.jsonl",
            "seva.jsonl",
            "rlaif.jsonl",
            "turns.jsonl",
            "messages.jsonl",
            "instructions.jsonl",
        ),
        CHECK,
    ),
    "pairs, listed": Kind(0.06, as_json, ("llava.json", "texts.json", "turns.json"), CHECK),
    "prompts": Kind(0.06, as_jsonl, ("prompts.jsonl",), (DRY + " --prompts {file}", DRY + " --prompts {file} --skip-bad")),
    "recipe": Kind(
        0.10, as_yaml, (*(f"{method}.yaml" for method in SETTINGS), "presets.yaml"), ("run -c {file} --output out --dry-run",)
    ),
    "training settings": Kind(
        0.02, as_yaml, ("training.json",), ("train --model tiny -c {file} --data pairs.jsonl --adapter-path out --dry-run",)
    ),
    "annotations": Kind(
        0.03, as_json, ("truth.json",), ("eval --model tiny --annotations {file} --benchmark chair --max-tokens 1",)
    ),
    "vocabulary": Kind(
        0.06,
        as_json,
        ("words.json",),
        (DRY + " --images photos --vocabulary {file}",) * 4
        + ("eval --model tiny --annotations truth.json --vocabulary {file} --benchmark chair --max-tokens 1",),
    ),
    "model weights": Kind(0.06, as_safetensors, ("model/model.safetensors",), (ANSWER + " --model {folder}", *LLAVA)),
    "CLIP weights": Kind(0.03, as_safetensors, ("clip/model.safetensors",), CLIP),
    "adapter weights": Kind(0.04, as_safetensors, ("adapter/adapters.safetensors",), ADAPTER),
    "PEFT weights": Kind(0.02, as_safetensors, ("peft/adapter_model.safetensors",), PEFT),
    "torch weights": Kind(0.06, as_torch, ("torch/pytorch_model.bin",), LLAVA),
    "index": Kind(0.03, as_json, ("shards/model.safetensors.index.json",), LLAVA),
    "model config": Kind(0.05, as_json, ("model/config.json",), (ANSWER + " --model {folder}", *LLAVA)),
    "CLIP config": Kind(0.02, as_json, ("clip/config.json",), CLIP),
    "words and pixels": Kind(
        0.04,
        as_json,
        tuple(
            f"model/{name}"
            for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
        ),
        (ANSWER + " --model {folder}", *LLAVA),
    ),
    "chat template": Kind(0.01, as_text, ("model/chat_template.jinja",), (ANSWER + " --model {folder}", *LLAVA)),
    "authors' weights": Kind(0.01, as_safetensors, ("authors/model.safetensors",), AUTHORS),
    "authors' config": Kind(0.02, as_json, ("authors/config.json",), AUTHORS),
    "authors' words": Kind(
        0.02,
        any_of(as_json, as_text),
        ("authors/tokenizer_config.json", "authors/special_tokens_map.json"),
        AUTHORS,
    ),
    "SentencePiece": Kind(0.01, as_bytes, ("authors/tokenizer.model",), AUTHORS),
    "adapter config": Kind(
        0.03,
        as_json,
        ("adapter/adapter_config.json",),
        (*ADAPTER, *ADAPTER, *ADAPTER, "doctor --adapter-path {folder} --model tiny"),
    ),
    "PEFT config": Kind(0.02, as_json, ("peft/adapter_config.json",), PEFT),
    "a run's records": Kind(
        0.006,
        as_jsonl,
        tuple(
            f"runs/{name}.jsonl"
            for name in (
                *("seva/prompts", "seva/responses", "seva/pairs", "seva/before", "seva/metrics", "csr/trees", "csr/pairs-2"),
                *("fisao/samples", "fisao/judge", "fisao/rollouts/0000002"),
            )
        ),
        ("run -c {method}.yaml --output runs/{method}",),
        runs=True,
    ),
    "a run's settings": Kind(
        0.006,
        any_of(as_json, as_text),
        tuple(
            f"runs/{name}"
            for name in (
                *("seva/prompts.settings.json", "seva/pairs.settings.json", "seva/versions.json", "csr/rounds.json"),
                *("seva/checkpoints/step-0000012/state.json", "seva/adapter/adapter_config.json", "seva/doctor.json"),
            )
        ),
        ("run -c {method}.yaml --output runs/{method}",),
        runs=True,
    ),
    "a run's config": Kind(
        0.003, as_text, ("runs/seva/config.yaml",), ("run -c {method}.yaml --output runs/{method}",), runs=True
    ),
    "a report": Kind(
        0.005,
        as_json,
        ("whole/seva/report.json",),
        (
            "run -c {method}.yaml --output whole/{method}",
            "upload --path whole/{method}/adapter --run whole/{method} --upload-repo me/it --dry-run",
        ),
        runs=True,
    ),
    "images": Kind(
        0.09,
        any_of(as_png, as_bytes),
        tuple(
            f"{name.partition('.')[0]}/{name}"
            for name in (
                *("exif.jpg", "progressive.jpg", "cmyk.jpg", "grey.jpg"),
                *("rgb.png", "palette.png", "alpha.png", "deep.png", "bits.png", "notes.png"),
                *("lossy.webp", "lossless.webp", "moving.webp"),
            )
        ),
        (
            DRY + " --images {folder}",
            DRY + " --images {folder} --skip-bad",
            "generate --model tiny --max-tokens 1 --image {file}",
        ),
    ),
}


# -- sound files ------------------------------------------------------------------------------------------------------


def make_files(folder: Path, runs: bool = False) -> None:
    """Files that every command of KINDS accepts, in `folder`, and secrets beside it. `runs`: those of whole runs too."""
    (folder.parent / "secrets").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 48)).save(folder.parent / "secrets/secret.png")
    folder.mkdir()
    make_inputs(folder)
    if runs:
        for method in SETTINGS:
            make_runs(folder, method)
        shutil.rmtree(folder / "adapter")
    _pairs(folder)
    for method in SETTINGS:
        write_recipe(method, folder)
    (folder / "training.json").write_text(json.dumps(SETTINGS["seva"]["train"]))
    (folder / "presets.yaml").write_text(
        "# A recipe as people write them.\nmethod: seva\nmodel: tiny\nimages: photos\npreset: small\npresets:\n"
        "  small: {settings: {max_tokens: 8, train: {learning_rate: 1e-5}}}\n  large:\n    settings:\n      max_tokens: 64\n"
        "settings: &all\n  view: crop\n  train:\n    lora: {rank: 4}\n    iters: 3\n"
    )
    policy = load("tiny")
    policy.attach(LoRASettings(rank=2), 0)
    for layer in adapters(policy.model).values():
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
    policy.save_adapter(folder / "adapter")
    assert main(f"convert peft --adapter-path {folder}/adapter --output {folder}/peft".split()) == 0
    _other_weights(folder)
    _images(folder)


def _pairs(folder: Path) -> None:
    image, question, good, bad = "photos/1.png", "What is there?", "A red circle.", "A blue star."
    human, gpt = {"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": good}
    rows: dict[str, dict[str, Any]] = {
        "texts": {"image": image, "prompt": question, "chosen": good, "rejected": bad},
        "llava": {
            "id": "1",
            "image": image,
            "conversations": [human, gpt],
            "rejected_conversations": [human, {"from": "gpt", "value": bad}],
        },
        "seva": {"image_id": image, "question": question, "chosen": good, "reject": bad},
        "rlaif": {"image_path": image, "question": question, "chosen": good, "rejected": bad, "idx": 3},
        "turns": {"images": [image], "conversations": [human], "chosen": gpt, "rejected": {"from": "gpt", "value": bad}},
        "messages": {
            "images": [image],
            "messages": [{"role": "user", "content": f"<image>{question}"}],
            "chosen": {"role": "assistant", "content": good},
            "rejected": {"role": "assistant", "content": bad},
        },
        "instructions": {"images": image, "instruction": question, "input": "", "chosen": good, "rejected": bad},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
        (folder / f"{name}.json").write_text(json.dumps([row] * 3))


def _other_weights(folder: Path) -> None:
    """The same model in shards, and as torch has it."""
    tensors = dict(mx.load(str(TINY / "model.safetensors")))
    names = sorted(tensors)
    for name in ("shards", "torch"):
        shutil.copytree(TINY, folder / name, ignore=shutil.ignore_patterns("*.safetensors"))
    placed = {}
    for number, part in enumerate((names[:50], names[50:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        mx.save_safetensors(str(folder / "shards" / file), {name: tensors[name] for name in part}, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (folder / "shards/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    arrays = {name: np.array(tensor).astype(np.float16) for name, tensor in tensors.items()}
    original_layout.write_torch(folder / "torch/pytorch_model.bin", arrays)
    original_layout.write_folder(folder / "authors", original_layout.authors_tensors(original_layout.authors_model()))
    original_layout.write_tokenizer(folder / "authors")


def _images(folder: Path) -> None:
    with Image.open(folder / "photos/0.png") as opened:
        scene = opened.convert("RGB").resize((40, 30))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9286: b"a comment", 0xA002: 40}
    notes = PngImagePlugin.PngInfo()
    notes.add_text("title", "a scene", zip=True)
    notes.add_itxt("author", "somebody", "en", "author")
    alpha = scene.convert("RGBA")
    alpha.putalpha(100)
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "exif.jpg": (scene, {"exif": exif, "quality": 80}),
        "progressive.jpg": (scene, {"progressive": True}),
        "cmyk.jpg": (scene.convert("CMYK"), {}),
        "grey.jpg": (scene.convert("L"), {"dpi": (72, 72), "comment": b"grey"}),
        "rgb.png": (scene, {}),
        "palette.png": (scene.quantize(16), {"transparency": 3}),
        "alpha.png": (alpha, {"exif": exif}),
        "deep.png": (Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), {}),
        "bits.png": (scene.convert("1"), {}),
        "notes.png": (scene, {"pnginfo": notes, "icc_profile": b"no profile"}),
        "lossy.webp": (scene, {"exif": exif}),
        "lossless.webp": (alpha, {"lossless": True}),
        "moving.webp": (scene, {"save_all": True, "append_images": [scene.rotate(9)], "duration": 50}),
    }
    for name, (image, options) in made.items():
        place = folder / name.partition(".")[0]
        place.mkdir()
        image.save(place / name, **options)


# -- one input --------------------------------------------------------------------------------------------------------


class HangError(BaseException):
    """A command took longer than it may."""


def attempt(name: str, number: int, seed: int, folder: Path) -> Outcome:
    """Spoil a file in `folder`, give a command there, and put all back."""
    file, command, spoilt = attempted(name, number, seed, folder)
    sound, top = (folder / file).read_bytes(), Path(file).parts[0]
    if KINDS[name].runs:
        shutil.copytree(folder / top, folder.parent / top)
    (folder / file).write_bytes(spoilt)
    try:
        return judged(Outcome(name, number, file, command, data=spoilt), folder)
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)
        if KINDS[name].runs:
            shutil.rmtree(folder / top)
            (folder.parent / top).rename(folder / top)
        else:
            (folder / file).write_bytes(sound)


def attempted(name: str, number: int, seed: int, folder: Path) -> tuple[str, str, bytes]:
    """An input: which file, the command, and what the file is to hold."""
    kind, draw = KINDS[name], Random(f"{seed} {name} {number}")
    file = draw.choice(kind.files)
    command = filled(draw.choice(kind.commands), file)
    spoilt = kind.mutate(draw, (folder / file).read_bytes())
    if draw.random() < 0.03:
        spoilt = splice(draw, spoilt, [(folder / other).read_bytes() for other in kind.files])
    return file, command, spoilt


def filled(command: str, file: str) -> str:
    parts = Path(file).parts
    return command.format(file=file, folder=Path(file).parent, method=parts[1] if len(parts) > 2 else "")


def judged(outcome: Outcome, folder: Path) -> Outcome:
    """Give the command in `folder`, and say what is wrong with how it ends."""
    before, memory, begun = _state_of(folder), _peak(anew=True), time.process_time()
    out, err = io.StringIO(), io.StringIO()
    with _watching(folder) as broken, contextlib.chdir(folder), _no_longer(HANG):  # noqa: SIM117
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                outcome.code = main(outcome.command.split())
            except SystemExit as error:
                outcome.code = error.code
            except BaseException as error:
                outcome.wrong = "hang" if isinstance(error, HangError) else type(error).__name__
                outcome.place = _innermost(error)
                outcome.said = "".join(traceback.format_exception(error))[-6000:]
                if isinstance(error, KeyboardInterrupt):
                    raise
    outcome.seconds, outcome.memory = time.process_time() - begun, _peak() - memory
    said = err.getvalue()
    message = said[said.rfind(f"visalign {outcome.command.split()[0]}") :]
    faults = {
        "exit code": outcome.code not in (0, 2),
        "no message": outcome.code == 2 and not message.strip(),
        "a Python object in the message": re.search(r"object at 0x|<class '|Traceback", message),
        "words of a library": re.search(r"site-packages|\w+Warning:", said),
        "memory": outcome.memory > MEMORY,
        "reached outside": broken,
        "left something": _state_of(folder) != before,
    }
    if not outcome.wrong:
        outcome.wrong = ", ".join(fault for fault, found in faults.items() if found)
        outcome.said = "\n".join([said[-3000:], *broken, *map(str, _state_of(folder).items() ^ before.items())])
        outcome.place = outcome.place or (outcome.wrong and outcome.command.split()[0])
    return outcome


def _state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and when it was changed, but for what a command writes where it was told to."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("out", "runs", "whole")]
        for name in names:
            about = os.stat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (about.st_size, about.st_mtime_ns)
    return found


def _peak(anew: bool = False) -> int:
    """The most memory this process has had; on Linux since it was last asked `anew`."""
    if anew and sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _innermost(error: BaseException) -> str:
    """The last line of ours on the way to an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)]
    ours = [frame for frame in frames if ".venv" not in frame.filename and Path(frame.filename).parent.name != "helpers"]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"


@contextlib.contextmanager
def _no_longer(seconds: float) -> Iterator[None]:
    """Of processor time, so that a busy machine hangs nobody."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# -- what a command may not do ----------------------------------------------------------------------------------------

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.getaddrinfo")
_watched: tuple[Path, list[str]] | None = None


def _tell(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    folder, broken = _watched
    if event == "subprocess.Popen" and any(Path(str(word)) == RENDERING for word in args[1]):
        return  # a chat template is written out in a process of its own, which may do nothing else
    if event in _NEVER:
        broken.append(f"{event} {args}")
    elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path = Path(os.path.realpath(os.fsdecode(args[0])))
        if path.is_relative_to(folder.parent / "secrets") or (args[2] & _WRITES and not _may_write(path, folder)):
            broken.append(f"open {path} {args[1]}")
    elif event in _CHANGES:
        for path in (Path(os.path.realpath(os.fsdecode(arg))) for arg in args if isinstance(arg, str | bytes | os.PathLike)):
            if not _may_write(path, folder):
                broken.append(f"{event} {path}")


def _may_write(path: Path, folder: Path) -> bool:
    return path == Path(os.devnull) or path.is_relative_to(folder)


sys.addaudithook(_tell)


@contextlib.contextmanager
def _watching(folder: Path) -> Iterator[list[str]]:
    global _watched
    broken: list[str] = []
    (folder / "out").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "out")
    _watched = (Path(os.path.realpath(folder)), broken)
    try:
        yield broken
    finally:
        _watched = tempfile.tempdir = None
