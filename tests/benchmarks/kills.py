"""Commands that are killed (SIGKILL) at random moments and given again: do they end as undisturbed ones do?

    make kills                    # 20 kills of each command
    python tests/benchmarks/kills.py --kills 30 --only csr fisao fuse

A command is killed when it has used a share of an undisturbed one's processor time, drawn uniformly from 0 to 1, and given
again until it ends before its next kill; then it begins anew elsewhere, until there were enough kills. Each that ended is
compared with the undisturbed one: adapters, models, checkpoints and every stage's records bit for bit (so none is lost or
doubled), the updates in the training's log, and which files there are: nothing that a kill left may stay. Every file must be
readable. What the commands read, and a folder of files with the names of what they write, must never change.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from small_runs import SETTINGS, write_recipe

from mlx_visalign.cli.main import main as main_of_command
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.models.lora import LoRASettings, adapters

CONTEXT = multiprocessing.get_context("forkserver")  # every attempt is a process of its own, spared the imports
CONTEXT.set_forkserver_preload(
    [
        *(
            f"mlx_visalign.{name}"
            for name in ("pipeline.align", "convert.fuse", "convert.llava", "convert.clip", "convert.peft", "methods.csr")
        )
    ]
)
COMMANDS = {
    **{method: f"run -c {method}.yaml --output {{}}/run" for method in SETTINGS},
    "convert llava": "convert llava --hf-path model --mlx-path {}/mlx --verify",
    "convert clip": "convert clip --hf-path clip --mlx-path {}/clip --verify",
    "convert peft": "convert peft --adapter-path adapter --output {}/peft",
    "fuse": "fuse --model model --adapter-path adapter --mlx-path {}/fused --no-probe",
    "upload": "upload --path {}/adapter --upload-repo me/it --dry-run",
}
NAMES = ("adapters.safetensors", "config.json", "README.md", "model.safetensors", ".lock", "metrics.jsonl")  # written here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = Table("command", "kills", "finished", "other than undisturbed", "seconds a kill", "in the middle of")
    for name in options.only:
        with TemporaryDirectory() as folder:
            table.add_row(name, *tried(name, options.kills, random.Random(f"{options.seed} {name}"), Path(folder)))
    Console().print(table)


def tried(name: str, kills: int, draw: random.Random, folder: Path) -> list[str]:
    """Kill a command and give it again; the table's cells."""
    prepare(folder)
    whole, seconds = workplace(folder, "whole"), CONTEXT.Value("d", 0.0)
    attempt(name, whole, math.inf, seconds)
    sound, begun = foreign(folder), time.perf_counter()
    during: Counter[str] = Counter()
    finished, wrong = 0, []
    while during.total() < kills:
        killed = workplace(folder, "killed")
        done = False
        while during.total() < kills and not done:
            done = attempt(name, killed, draw.random() * seconds.value)
            if not done:
                during[newest(killed)] += 1
            wrong += sorted(foreign(folder) ^ sound)
        if not done:
            attempt(name, killed, math.inf)
        finished, wrong = finished + 1, wrong + list(differences(whole, killed))
        shutil.rmtree(killed)
    spent = (time.perf_counter() - begun) / kills
    shutil.rmtree(canaries(folder)[1])
    told = ", ".join(f"{place} {count}" for place, count in during.most_common())
    return [str(kills), str(finished), ", ".join(map(str, wrong)) or "nothing", f"{spent:.1f}", told]


def prepare(folder: Path) -> None:
    """What the commands read, and what is nobody's business."""
    make = CONTEXT.Process(target=make_sound, args=(folder,))
    make.start()
    make.join()
    for place in canaries(folder):
        place.mkdir()
        for name in NAMES:
            (place / name).write_text(f"{name} of somebody else")


def make_sound(folder: Path) -> None:
    for method in SETTINGS:
        write_recipe(method, folder)
    shutil.copytree(TINY, folder / "model")
    shutil.copytree(TINY.parent / "clip", folder / "clip")
    policy = load("tiny")
    policy.attach(LoRASettings(rank=2), 0)
    for layer in adapters(policy.model).values():
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
    policy.save_adapter(folder / "adapter")


def workplace(folder: Path, name: str) -> Path:
    """A folder to write to, with an adapter to upload and somebody's notes in it."""
    shutil.copytree(folder / "adapter", folder / name / "adapter")
    (folder / name / "notes.txt").write_text("somebody's notes")
    return folder / name


def canaries(folder: Path) -> tuple[Path, Path]:
    """Two folders that no command has anything to do with: beside the ones written to, and outside."""
    return folder / "beside", folder.parent / f"{folder.name}-outside"


def foreign(folder: Path) -> set[tuple[str, str]]:
    """Every file that no command may touch, and what it holds."""
    places = [*canaries(folder), *(folder / name for name in ("model", "clip", "adapter"))]
    files = [path for place in places for path in place.rglob("*")]
    return {(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def attempt(name: str, folder: Path, limit: float, seconds: Any = None) -> bool:
    """Give the command, to be killed after `limit` seconds of processor time. Whether it came to its end.

    `seconds` takes how many it used.
    """
    process = CONTEXT.Process(target=work, args=(COMMANDS[name].format(folder), folder.parent, limit, seconds))
    process.start()
    process.join()
    said = (folder.parent / "said.txt").read_text()
    finished = process.exitcode == 0 or "already exists" in said  # it had only to be looked at once more
    if not finished and process.exitcode != -signal.SIGKILL:
        raise SystemExit(f"{name} ended with {process.exitcode}: {said[-2000:]}")
    return finished


def work(command: str, folder: Path, limit: float, seconds: Any) -> None:
    os.chdir(folder)
    sys.stdout = sys.stderr = (folder / "said.txt").open("w")
    begun = time.process_time()
    threading.Thread(target=die, args=(begun + limit,), daemon=True).start()
    code = main_of_command(command.split())
    if seconds is not None:
        seconds.value = time.process_time() - begun
    sys.exit(code)


def die(at: float) -> None:
    while time.process_time() < at:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def newest(folder: Path) -> str:
    """What was written last: a stage, a round's training, or a file of a model."""
    given = ("adapter", "notes.txt")
    files = [file for file in files_of(folder) if file.name != "report.html" and file.relative_to(folder).parts[0] not in given]
    last = max(files, key=lambda file: file.stat().st_mtime_ns, default=folder / "nothing")
    parts = last.relative_to(folder).parts
    if parts[-1].startswith(".unfinished"):  # by a name that is drawn anew every time
        return "a file unfinished"
    return parts[1].partition(".")[0] if parts[0] == "run" and len(parts) > 1 else parts[-1]


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """What is other in the second run; raises what a reader raises if a file is damaged."""
    names = [{str(file.relative_to(folder)) for file in files_of(folder)} for folder in (whole, killed)]
    yield from (f"{name} (in one only)" for name in sorted(names[0] ^ names[1]))
    for name in sorted(names[0] & names[1]):
        if content(whole / name) != content(killed / name):
            yield name


def content(file: Path) -> object:
    """What must be equal in two runs. What is measured in seconds, or drawn from it, must only be readable."""
    if file.name == "metrics.jsonl":
        return [row["iteration"] for row in read_metrics(file)]
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_bytes().splitlines()], file.read_bytes()
    if file.suffix == ".safetensors":
        mx.eval(mx.load(str(file)))
        return file.read_bytes()
    if file.suffix == ".txt":
        return file.read_bytes()
    if file.suffix == ".json":
        json.loads(file.read_bytes())
    elif file.suffix == ".png":
        with Image.open(file) as picture:
            picture.load()
    return None


def files_of(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]


if __name__ == "__main__":
    main()
