"""Files that are almost right, 50,000 of them: does every command that reads one end well, or with one sentence?

    make fuzz                                             # all kinds, as they are shared out in tests/helpers/fuzzing.py
    python tests/benchmarks/fuzz.py --count 2000 --only recipe images --seed 7

A find is any exception but UserError, any exit code but 0 and 2, more than 10 s of processor time or 1 GiB of memory above
the process's own, a Python object or a library's words in what is said, a process or a connection, a read of secrets.png,
and a write anywhere but in the folder that the command was given for it. Each is kept as a folder under --finds, with the
file, the command and what was said; every place in the code once. An input is decided by seed, kind and number: `--only KIND
--first NUMBER --count 1` is one input again.

The work is done in processes of 500 inputs each; one that a file brings down, or holds for longer than any signal could
tell, is a find too, and the next begins behind it. figures go to tests/benchmarks/results/fuzz.json.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "helpers"))
os.environ |= {"HF_HUB_OFFLINE": "1", "MLX_DISABLE_COMPILE": "1"}

import fuzzing  # noqa: E402

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["fuzzing", "mlx_visalign.pipeline.compare", "mlx_visalign.convert.fuse", "mlx_vlm.models.llava", "transformers"]
)
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
BATCH = 500  # inputs that a process gets
SILENT = 120  # seconds without a word from a process whose alarm of 10 s of processor time has not woken it


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    memory: int = 0
    finds: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="inputs in all; of each kind with --only")
    parser.add_argument("--only", nargs="+", choices=list(fuzzing.KINDS), metavar="KIND", help=", ".join(fuzzing.KINDS))
    parser.add_argument("--first", type=int, default=0, help="the first input's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finds", type=Path, default=Path("runs/fuzz"), help="a folder for the inputs that found something")
    options = parser.parse_args()
    wanted = dict.fromkeys(options.only or (), options.count)
    shares = sum(kind.share for kind in fuzzing.KINDS.values())
    wanted = wanted or {name: round(options.count * kind.share / shares) for name, kind in fuzzing.KINDS.items()}
    tallies = {name: Tally() for name in wanted}
    runs = any(fuzzing.KINDS[name].runs for name in wanted)
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        process = CONTEXT.Process(target=fuzzing.make_files, args=(Path(folder) / "sound", runs))
        process.start()
        process.join()
        for name, count in wanted.items():
            number, end = options.first, options.first + count
            while number < end:
                number = batch(name, number, min(number + BATCH, end), options, Path(folder), tallies[name])
            print(f"{name}: {count} inputs, {tallies[name].seconds:.0f} s, {tallies[name].finds.total()} finds", flush=True)
    report(tallies, options.seed, options.only is None)
    sys.exit(1 if any(tally.finds for tally in tallies.values()) else 0)


def batch(name: str, first: int, end: int, options: argparse.Namespace, folder: Path, tally: Tally) -> int:
    """Inputs from `first` on, in a process of their own; the number of the next one."""
    place = folder / "work" / "files"
    shutil.rmtree(place.parent, ignore_errors=True)
    shutil.copytree(folder / "sound", place)
    shutil.copytree(folder / "secrets", place.parent / "secrets")
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(name, first, end, options.seed, place, theirs), daemon=True)
    process.start()
    theirs.close()
    for number in range(first, end):
        try:
            outcome = ours.recv() if ours.poll(SILENT) else None
        except EOFError:
            outcome = None
        lost = outcome is None
        if lost:
            process.kill()
            process.join()
            file, command, data = fuzzing.attempted(name, number, options.seed, folder / "sound")
            wrong = f"the process ended with {process.exitcode}"
            outcome = fuzzing.Outcome(name, number, file, command, data=data, wrong=wrong)
        count(tally, outcome, options.finds)
        if lost or outcome.wrong.startswith(("hang", "memory")):  # what comes next in it would say little
            process.kill()
            process.join()
            return number + 1
    process.join()
    return end


def work(name: str, first: int, end: int, seed: int, folder: Path, parent: Connection) -> None:
    os.environ["HF_HOME"] = str(folder / "out")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    for number in range(first, end):
        outcome = fuzzing.attempt(name, number, seed, folder)
        if not outcome.wrong:
            outcome.data, outcome.said = b"", ""
        parent.send(outcome)


def count(tally: Tally, outcome: fuzzing.Outcome, finds: Path) -> None:
    tally.inputs += 1
    tally.accepted += outcome.code == 0
    tally.refused += outcome.code == 2
    tally.seconds += outcome.seconds
    tally.longest = max(tally.longest, outcome.seconds)
    tally.memory = max(tally.memory, outcome.memory)
    if not outcome.wrong:
        return
    name = re.sub(r"[^\w.]+", "-", f"{outcome.kind} {outcome.wrong} {outcome.place}")
    tally.finds[name] += 1
    if tally.finds[name] == 1:
        print(f"{outcome.kind} {outcome.number}: {outcome.wrong} ({outcome.place}), `visalign {outcome.command}`", flush=True)
        place = finds / name
        place.mkdir(parents=True, exist_ok=True)
        (place / Path(outcome.file).name).write_bytes(outcome.data)
        (place / "about.txt").write_text(f"{outcome.kind} {outcome.number}\nvisalign {outcome.command}\n\n{outcome.said}\n")


def report(tallies: dict[str, Tally], seed: int, keep: bool) -> None:
    table = Table("kind", "inputs", "accepted", "refused", "finds", "CPU seconds", "longest (s)", "most memory (MB)")
    rows = []
    for name, tally in tallies.items():
        row = (name, tally.inputs, tally.accepted, tally.refused, tally.finds.total())
        rows.append((*row, round(tally.seconds, 1), round(tally.longest, 2), tally.memory // 10**6))
        table.add_row(*map(str, rows[-1]))
    Console().print(table)
    if keep:
        columns = ("kind", "inputs", "accepted", "refused", "finds", "cpu_seconds", "longest_seconds", "most_memory_mb")
        content = {
            "seed": seed,
            "inputs": sum(tally.inputs for tally in tallies.values()),
            "finds": sum(tally.finds.total() for tally in tallies.values()),
            "cpu_seconds": round(sum(tally.seconds for tally in tallies.values())),
            "limits": {"seconds": fuzzing.HANG, "memory_mb": fuzzing.MEMORY // 10**6},
            "kinds": [dict(zip(columns, row, strict=True)) for row in rows],
            "finds_by_place": {name: dict(tally.finds) for name, tally in tallies.items() if tally.finds},
        }
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
