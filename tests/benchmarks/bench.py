"""A DPO step and sampling on a LLaVA of 64 M parameters: ours, mlx-vlm's and TRL's, on the same weights, pair and meter.

    make bench                                       # about seven minutes on a quiet machine
    python tests/benchmarks/bench.py --rounds 1      # sooner, and less sure

The model is random, in float32, and small enough for a CPU; an image of 576 tokens in a prompt of 640, answers of 150
and 100 tokens, LoRA of rank 8 on all linear layers of the language model. Every figure is from a process of its own; the
trainers take turns, round by round. The first step of each warms up. CPU seconds are the process's own (getrusage),
medians over all steps; memory is the most that was held at once above the loaded model, warm-up included (on Linux VmHWM,
set back when all is loaded). All get the same number of threads, and a glibc that keeps freed memory (KEPT). A fast BLAS
that was loaded first (Makefile) serves mlx-vlm and us alike; torch brings its own. Rows of a GPU run where one is found.
What the table said last is in results/bench.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

# This process imports nothing large: on Linux a child's peak may begin with the memory of the process that started it.
HERE = Path(__file__).parent
OWN, CHECKPOINTED, MLX_VLM, TRL = "ours", "ours, layers recomputed", "mlx-vlm", "TRL"
# By itself glibc gives every large buffer back to the system, which hands it out again page by page.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
TWO_OWN, TWO_TRL = "ours, two pairs one after the other", "TRL, two pairs in a batch"


@dataclass
class Peer:
    """A row: a script with its arguments, and what its process said each time. `failed` says why there is nothing."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    always: bool = True  # in every round, or in the first alone
    runs: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""

    def run(self, folder: Path, steps: int, threads: int) -> None:
        try:
            self.runs.append(said_by(self.script, str(folder), "--steps", str(steps), *self.arguments, threads=threads))
        except RuntimeError as error:
            self.failed = str(error)

    def middle(self, meter: str) -> float:
        """The median step's `cpu` or `wall` seconds."""
        return median(seconds for run in self.runs for seconds in run[meter])

    def memory(self) -> float:
        return median(run["memory"] for run in self.runs)

    def once(self) -> float:
        """CPU seconds of the reference and the image's features, once a pair."""
        return median(run["once"]["cpu"][0] for run in self.runs)


@dataclass(frozen=True)
class Goal:
    name: str
    found: float
    limit: float
    at_least: bool = True

    @property
    def reached(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit


def peers() -> list[Peer]:
    return [
        Peer(OWN, "ours.py"),
        Peer(MLX_VLM, "mlx_vlm_dpo.py"),
        Peer(TRL, "trl_dpo.py"),
        Peer(CHECKPOINTED, "ours.py", ("--checkpoint",)),
        Peer(TWO_OWN, "ours.py", ("--pairs", "2"), always=False),
        Peer(TWO_TRL, "trl_dpo.py", ("--pairs", "2"), always=False),
        Peer("ours, on a GPU", "ours.py", ("--device", "gpu"), always=False),
        Peer("TRL, on a GPU", "trl_dpo.py", ("--device", "gpu"), always=False),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed in each process, after one that warms up")
    parser.add_argument("--tokens", type=int, default=32, help="of a sampled answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "bench.json", help="where the figures go")
    options = parser.parse_args()
    rows = peers()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "llava")
        said_by("shape.py", str(folder), threads=options.threads)
        measure(rows, folder, options.rounds, options.steps, options.threads)
        sampling = said_by("sampling.py", str(folder), "--tokens", str(options.tokens), threads=options.threads)
    counted = said_by("counted.py", threads=options.threads)["tflop"]
    goals = list(goals_of({row.name: row for row in rows if row.runs}, sampling, counted))
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    about = {"machine": machine(), "fast_blas": "LD_PRELOAD" in os.environ, **settings, "versions": versions(rows)}
    show(rows, sampling, counted, goals, about)
    record = about | {"peers": {row.name: row.runs or row.failed for row in rows}, "sampling": sampling, "tflop": counted}
    record["goals"] = {goal.name: {"found": goal.found, "limit": goal.limit, "reached": goal.reached} for goal in goals}
    options.json.write_text(json.dumps(record, indent=1) + "\n")


def measure(rows: list[Peer], folder: Path, rounds: int, steps: int, threads: int) -> None:
    """Fill the rows, in turns; raises SystemExit where two that should compute the same do not."""
    for turn in range(rounds):
        for row in rows:
            if (row.always or turn == 0) and not row.failed:
                print(f"{turn + 1}/{rounds} {row.name}", file=sys.stderr, flush=True)
                row.run(folder, steps, threads)
    if rows[0].failed:
        sys.exit(f"{rows[0].name}: {rows[0].failed}")
    for row in rows:
        for run in row.runs:
            if abs(run["loss"] - 0.693147) > 1e-4:
                sys.exit(f"{row.name}: the first loss is {run['loss']}, not ln 2")
    every = [run["logps"] for row in rows for run in row.runs if "logps" in run]  # mlx-vlm does not say its own
    if any(abs(one - first) > 1e-5 * abs(first) for logps in every for one, first in zip(logps, every[0], strict=True)):
        sys.exit(f"Other log-probabilities for the same answers: {every}")


def said_by(script: str, *arguments: str, threads: int) -> dict[str, Any]:
    """The last line of a peer's process. RuntimeError, with its reason, where it ended badly."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    # MLX rounds float32 to TF32 on a GPU unless it is told not to; torch does not.
    environment = os.environ | dict.fromkeys(names, str(threads)) | KEPT | {"HF_HUB_OFFLINE": "1", "MLX_ENABLE_TF32": "0"}
    if script == "trl_dpo.py":
        environment.pop("LD_PRELOAD", None)
    command = [sys.executable, str(HERE / "peers" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def goals_of(rows: dict[str, Peer], sampling: dict[str, Any], counted: dict[str, float]) -> Iterator[Goal]:
    """What was aimed at, for the peers that ran."""
    own = rows[OWN].middle("cpu")
    for name, cached, once in ((MLX_VLM, 3.5, 2.2), (TRL, 2.5, 1.7)):
        if name in rows:
            yield Goal(f"CPU seconds of a step, {name}'s to ours", rows[name].middle("cpu") / own, cached)
            yield Goal(f"  our reference pass counted in, {name}", rows[name].middle("cpu") / (own + rows[OWN].once()), once)
    if TRL in rows:
        yield Goal("memory, TRL's to ours", rows[TRL].memory() / rows[OWN].memory(), 8)
        yield Goal("  with layers recomputed", rows[TRL].memory() / rows[CHECKPOINTED].memory(), 25)
    if TWO_TRL in rows:
        yield Goal("memory, two pairs an update", rows[TWO_TRL].memory() / rows[TWO_OWN].memory(), 8)
        yield Goal("  with layers recomputed", rows[TWO_TRL].memory() / rows[CHECKPOINTED].memory(), 25)
    yield Goal("8 answers, CPU seconds apart to together", sampling["cpu"]["apart"] / sampling["cpu"]["together"], 5)
    limits = {"step": 24.2, "step with its reference, prefix hot": 27.5, "step with its reference, pair imported": 36.0}
    for name, limit in limits.items():
        yield Goal(f"TFLOP at LLaVA-1.5-7B, {name}", counted[name], limit, at_least=False)


def show(rows: list[Peer], sampling: dict, counted: dict, goals: list[Goal], about: dict[str, Any]) -> None:
    table = Table("a DPO step", "CPU s", "wall s", "memory MB", "first loss", title="LLaVA of 64 M: 640 + 150/100 tokens")
    for row in rows:
        if row.failed:
            table.add_row(row.name, row.failed)
            continue
        figures = (f"{row.middle('cpu'):.2f}", f"{row.middle('wall'):.2f}", f"{row.memory() / 1e6:.0f}")
        table.add_row(row.name, *figures, f"{row.runs[0]['loss']:.6f}")
    table.add_row("our features and reference, once a pair", f"{rows[0].once():.2f}")
    for name in ("together", "apart"):
        seconds = (f"{sampling[meter][name]:.2f}" for meter in ("cpu", "wall"))
        table.add_row(f"8 answers of {about['tokens']} tokens, {name}", *seconds)
    reached = Table("goal", "found", "aimed at", "", title=f"mlx-vlm's step counts {counted['mlx-vlm']:.1f} TFLOP")
    for goal in goals:
        sign = ">=" if goal.at_least else "<="
        reached.add_row(goal.name, f"{goal.found:.2f}", f"{sign} {goal.limit:g}", "reached" if goal.reached else "missed")
    print_wide = Console(width=120).print
    print_wide(table, reached)
    print_wide(f"{about['machine']}; threads: {about['threads']}; fast BLAS loaded first: {about['fast_blas']}")
    print_wide(", ".join(f"{name} {version}" for name, version in about["versions"].items()))


def versions(rows: list[Peer]) -> dict[str, str]:
    return {name: version for row in rows for run in row.runs for name, version in run["versions"].items()}


def machine() -> str:
    """The processor's name, its cores, the system, and how busy it all was."""
    uname = os.uname()
    cpu = uname.machine
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, {os.cpu_count()} cores, {uname.sysname} {uname.release}, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
