"""A run of every method, ended early at random moments and started again: the same adapter, bit for bit."""

import random
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest
from small_runs import write_recipe

from mlx_visalign import methods

TIMED = ("metrics.jsonl",)  # whose rows hold seconds
ENDS = ((signal.SIGKILL, signal.SIGTERM), (signal.SIGINT,), (signal.SIGHUP,), (signal.SIGKILL,))  # `make kills` has more


def start(recipe, folder):
    command = [sys.executable, "-m", "mlx_visalign", "run", "-c", str(recipe), "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(recipe, folder):
    """Run to the end; how many lines the progress bars printed."""
    process = start(recipe, folder)
    _, lines = process.communicate(timeout=300)
    assert process.returncode == 0, lines.decode()
    return lines.count(b"\n")


def end_after(recipe, folder, lines, signum):
    """Run until so many lines of progress were printed, then end it: without warning, or asked to stop."""
    process = start(recipe, folder)
    for _ in range(lines):
        process.stderr.readline()
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    if signum == signal.SIGKILL:
        assert process.returncode == -signum
    else:
        assert process.returncode == 128 + signum
        assert said.count(b"to resume, run") == 1 and b"Traceback" not in said
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize(("method", "ends"), [*zip(methods.names(), cycle(ENDS))])
def test_early_ends_change_nothing(method, ends, tmp_path):
    whole, killed, recipe = tmp_path / "whole", tmp_path / "killed", write_recipe(method, tmp_path)
    lines = finish(recipe, whole)
    draw = random.Random(2024)
    for signum in ends:
        # A third of all work at most, so that three in a row never come after the end. The moment after the line is the
        # machine's to choose.
        end_after(recipe, killed, draw.randint(1, lines // 3), signum)
    finish(recipe, killed)
    made = sorted(file.relative_to(whole) for file in whole.rglob("*.jsonl") if file.name not in TIMED)
    for name in (Path("adapter/adapters.safetensors"), Path("adapter/adapter_config.json"), *made):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert len((killed / "metrics.jsonl").read_text().splitlines()) == 12
