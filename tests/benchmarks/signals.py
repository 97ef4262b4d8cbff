"""Commands that get SIGINT, SIGTERM or SIGHUP at random moments, and are then given again: do they end as they should?

    make signals                                        # 60 of each signal
    python tests/benchmarks/signals.py --count 12 --only run

A command is a process of its own, as installed. It gets its signal when it has used a share of an undisturbed one's
processor time (not on Linux: of its time), drawn uniformly, and every fourth of each signal within its first second. It must
end with 128 + signal (or as if nothing had been, where the signal came too late), say no more than one sentence of the stop,
and have no traceback; given again it must end as an undisturbed one does, with the same adapter or model bit for bit, and
leave nothing else.

Before a command's first line Python itself starts, and a signal then ends the process as Python and the system have it:
those are told by the signals that the process handles at that moment (Linux), and counted apart.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from sample_photos import write_photos
from small_runs import write_recipe

from mlx_visalign.inference.policy import TINY

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
VISALIGN = Path(sys.executable).with_name("visalign")
BROKEN = (b"Traceback", b"Exception ignored", b"Fatal Python error")
SENTENCES = (b"to resume, run", b"Nothing unfinished is left")  # what is said of a stop, at most one of them


@dataclass
class Command:
    """A command, and the folder it makes, if it makes one. `seconds`: what an undisturbed one uses."""

    name: str
    arguments: list[str]
    output: str | None = None
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="of each signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of commands")
    options = parser.parse_args()
    for signum in SIGNALS:  # a command keeps ignoring what was ignored before, as in a shell's background
        signal.signal(signum, signal.SIG_DFL)
    with TemporaryDirectory() as folder:
        commands = [each for each in made(Path(folder)) if options.only is None or each.name in options.only]
        os.chdir(folder)
        for command in commands:
            process, begun = start(whole(command)), time.perf_counter()
            while process.poll() is None:
                command.seconds = max(command.seconds, used(process, begun))
                time.sleep(0.002)
            assert process.returncode == 0, process.communicate()
            process.communicate()
        draw = random.Random(options.seed)
        for number in range(options.count):
            for signum in SIGNALS:
                command = commands[number % len(commands)]
                longest = min(1.0, command.seconds) if number // len(commands) % 4 == 0 else command.seconds
                disturb(command, signum, draw.uniform(0, 0.95 * longest))
    report(commands)
    sys.exit(1 if any(command.wrong for command in commands) else 0)


def made(folder: Path) -> list[Command]:
    """The commands; what they read is in `folder`."""
    write_photos(folder / "photos", 2)
    shutil.copytree(TINY, folder / "model")
    (folder / "whole").mkdir()
    recipe = str(write_recipe("seva", folder))
    return [
        Command("run", ["run", "-c", recipe, "--output", "{}/run"], "run"),
        Command("convert", ["convert", "llava", "--hf-path", "model", "--mlx-path", "{}/mlx", "--verify"], "mlx"),
        Command("generate", ["generate", "--model", "tiny", "--image", "photos/0.png", "photos/1.png"]),
        Command("help", ["--help"]),
        Command("doctor", ["doctor"]),
    ]


def whole(command: Command, folder: str = "whole") -> list[str]:
    return [str(VISALIGN), *(argument.format(folder) for argument in command.arguments)]


def disturb(command: Command, signum: signal.Signals, moment: float) -> None:
    """Start the command, send the signal after so many seconds, look at how it ends, and see it through."""
    Path("stopped").mkdir()
    process, begun = start(whole(command, "stopped")), time.perf_counter()
    while process.poll() is None and used(process, begun) < moment:
        time.sleep(0.001)
    ready = handles(process.pid)
    process.send_signal(signum)
    out, err = process.communicate(timeout=300)
    kind = "too late" if process.returncode == 0 else "stopped" if ready else "before its first line"
    command.ends[kind] += 1
    what = f"{command.name}, {signum.name} after {moment:.3f} s:"
    if kind == "stopped":
        if process.returncode != 128 + signum:
            command.wrong.append(f"{what} exit code {process.returncode}")
        if sum(err.count(each) for each in SENTENCES) > 1:
            command.wrong.append(f"{what} says {err!r}")
    if kind != "before its first line" and any(each in out + err for each in BROKEN):
        command.wrong.append(f"{what} {err.decode(errors='replace')}")
    if command.output is not None:
        again = subprocess.run(whole(command, "stopped"), capture_output=True)
        finished = b"already exists" in again.stderr  # a converter does not write over what it had finished
        if again.returncode != 0 and not finished:
            command.wrong.append(f"{what} then {again.stderr.decode(errors='replace')}")
        command.wrong += [f"{what} then other {name}" for name in differences(Path("whole"), Path("stopped"), command.output)]
    shutil.rmtree("stopped")


def start(words: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def used(process: "subprocess.Popen[bytes]", begun: float) -> float:
    """Seconds of processor time that a process has used so far; where nobody can tell, seconds since `begun`."""
    if sys.platform != "linux":
        return time.perf_counter() - begun
    try:
        return time.clock_gettime((~process.pid << 3) | 2)  # its clock, by the kernel's MAKE_PROCESS_CPUCLOCK
    except OSError:  # it has ended
        return 0.0


def handles(pid: int) -> bool:
    """Whether a process handles SIGHUP by now, which a command takes last in its first line; True where nobody can tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return sys.platform != "linux"
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signal.SIGHUP - 1) & 1)


def differences(sound: Path, other: Path, output: str) -> Iterator[str]:
    """What is other beside or in the second folder: files, weights and records; what is measured in seconds may be."""
    names = [
        {
            str(path.relative_to(top))
            for path in top.rglob("*")
            if path.name != ".lock" and path.relative_to(top).parts[0] == output
        }
        for top in (sound, other)
    ]
    strange = [path.name for path in other.iterdir() if path.name != output]
    # A training that was stopped has made a checkpoint there, and of its checkpoints the last two are kept.
    apart = [name for name in sorted(names[0] ^ names[1]) if not name.startswith(f"{output}/checkpoints/step-")]
    yield from (f"{name} (in one only)" for name in apart + strange)
    for name in sorted(names[0] & names[1]):
        same = (".safetensors", ".jsonl") if output == "run" else (".safetensors", ".json")
        if name.endswith(same) and "metrics" not in name and (sound / name).read_bytes() != (other / name).read_bytes():
            yield name


def report(commands: list[Command]) -> None:
    kinds = ("stopped", "before its first line", "too late")
    table = Table("command", "seconds", *kinds, "wrong")
    for command in commands:
        ends = [str(command.ends[kind]) for kind in kinds]
        table.add_row(command.name, f"{command.seconds:.1f}", *ends, "\n".join(command.wrong) or "nothing")
    Console().print(table)


if __name__ == "__main__":
    main()
