"""A whole run, killed (SIGKILL) three times at random moments and started again: the same adapter, bit for bit."""

import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

RECIPE = {
    "method": "seva",
    "model": "tiny",
    "images": "tiny-world",
    "count": 12,
    "questions": 1,
    "scenes": 4,
    "settings": {
        "view": "crop",
        "max_tokens": 64,
        "batch": 4,
        "train": {"batch_size": 2, "iters": 12, "learning_rate": 1e-3, "save_every": 3, "lora": {"rank": 4}},
    },
}
SAME = ("adapter/adapters.safetensors", "adapter/adapter_config.json", "prompts.jsonl", "responses.jsonl", "pairs.jsonl")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def start(recipe, folder):
    command = [sys.executable, "-m", "mlx_visalign", "run", "-c", str(recipe), "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(recipe, folder):
    process = start(recipe, folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def begun(folder):
    """When the work begins, after some seconds of imports."""
    while not (folder / "prompts.jsonl").exists():
        time.sleep(0.02)
    return time.monotonic()


def test_three_kills_change_nothing(recipe, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(recipe, whole)
    work_began = begun(whole)
    assert process.wait(timeout=300) == 0
    work_seconds = time.monotonic() - work_began

    draw = random.Random(2024)
    for _ in range(3):
        process = start(recipe, killed)
        begun(killed)
        time.sleep(draw.uniform(0, work_seconds))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    finish(recipe, killed)

    for name in SAME:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert len((killed / "metrics.jsonl").read_text().splitlines()) == 12
