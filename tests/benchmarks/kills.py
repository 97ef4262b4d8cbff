"""Runs that are killed (SIGKILL) at random moments and started again: do they end as an undisturbed run does?

    make kills                    # 20 kills for each of three methods
    python tests/benchmarks/kills.py --kills 10 --methods csr fisao

A run is killed when it has used a share of an undisturbed run's processor time, drawn uniformly from 0 to 1, and started
again until it ends before its next kill; then comes another run, until there were enough kills. Each that ended is
compared with the undisturbed one: adapters, checkpoints and every stage's records bit for bit (so none is lost or doubled),
the updates in the training's log, and which files there are. Every file must be readable.
"""

import argparse
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_runs import SETTINGS, write_recipe

from mlx_visalign.cli import find_method
from mlx_visalign.metrics import read_metrics
from mlx_visalign.pipeline import run_recipe
from mlx_visalign.recipe import make_plan
from mlx_visalign.run import Run

CONTEXT = multiprocessing.get_context("forkserver")  # every attempt is a process of its own, spared the imports
CONTEXT.set_forkserver_preload(["mlx_visalign.pipeline", "mlx_visalign.methods.csr", "mlx_visalign.methods.fisao"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = Table("method", "kills", "runs", "other than the undisturbed run", "in the middle of")
    for method in options.methods:
        with TemporaryDirectory() as folder:
            table.add_row(method, *tried(method, options.kills, random.Random(f"{options.seed} {method}"), Path(folder)))
    Console().print(table)


def tried(method: str, kills: int, draw: random.Random, folder: Path) -> list[str]:
    """Kill and resume runs of a method; the table's cells."""
    recipe, whole = write_recipe(method, folder), folder / "whole"
    seconds = CONTEXT.Value("d", 0.0)
    attempt(recipe, whole, math.inf, seconds)
    during: Counter[str] = Counter()
    runs, wrong = 0, []
    while during.total() < kills:
        killed = folder / "killed"
        while during.total() < kills and not attempt(recipe, killed, draw.random() * seconds.value):
            during[newest(killed)] += 1
        attempt(recipe, killed, math.inf)
        runs, wrong = runs + 1, wrong + list(differences(whole, killed))
        shutil.rmtree(killed)
    told = ", ".join(f"{name} {count}" for name, count in during.most_common())
    return [str(during.total()), str(runs), ", ".join(wrong) or "nothing", told]


def attempt(recipe: Path, folder: Path, limit: float, seconds: Any = None) -> bool:
    """Start or resume a run, to be killed after `limit` seconds of processor time. Whether it came to its end.

    `seconds` takes how many it used.
    """
    process = CONTEXT.Process(target=work, args=(recipe, folder, limit, seconds))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{recipe.stem}: a run ended with {process.exitcode}")
    return process.exitcode == 0


def work(recipe: Path, folder: Path, limit: float, seconds: Any) -> None:
    sys.stderr = (folder.parent / "bars.txt").open("w")
    begun = time.process_time()
    threading.Thread(target=die, args=(begun + limit,), daemon=True).start()
    run_recipe(make_plan(recipe, find_method), Run(folder))
    if seconds is not None:
        seconds.value = time.process_time() - begun


def die(at: float) -> None:
    while time.process_time() < at:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def newest(folder: Path) -> str:
    """What was written last: a stage, or a round's training."""
    files = [file for file in files_of(folder) if file.name != "report.html"]  # written ever again
    last = max(files, key=lambda file: file.stat().st_mtime_ns, default=folder / "nothing")
    return last.relative_to(folder).parts[0].partition(".")[0]


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
