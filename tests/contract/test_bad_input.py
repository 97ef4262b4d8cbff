"""Every bad input is one sentence that names the file (and its line), with exit code 2; what was there stays as it was."""

import json
import shutil
import subprocess
import sys

import pytest
from bad_inputs import CASES
from spoiling import copy_kit, cut, field, gone, line, put, row

from mlx_visalign.cli.main import main
from mlx_visalign.data.records import Prompt
from mlx_visalign.runs.run import Run
from mlx_visalign.utils.errors import UserError

REFRESHED = ("report.html", ".lock", "doctor.json")  # a page of what is there, and two that say nothing about it


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in REFRESHED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input(case, kit, tmp_path, monkeypatch, capsys):
    copy_kit(kit, tmp_path, case.command)
    case.spoil(tmp_path)
    before = content(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = main(case.command.split())
    said = capsys.readouterr().err
    assert code == 2, said
    assert sum(line.startswith("visalign ") for line in said.splitlines()) == 1 and "Traceback" not in said, said
    message = " ".join(said[said.index("visalign ") :].split())
    for part in (case.says,) if isinstance(case.says, str) else case.says:
        assert part in message, message
    assert before.items() <= content(tmp_path).items()


@pytest.mark.parametrize("name", ["a broken row", "a Python object"])
def test_a_process_of_its_own_says_the_same(name, kit, tmp_path):
    case = next(case for case in CASES if case.name == name)
    copy_kit(kit, tmp_path, case.command)
    case.spoil(tmp_path)
    done = subprocess.run([sys.executable, "-m", "mlx_visalign", *case.command.split()], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"visalign " in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (line("asked.jsonl", 2, '{"id": "q1", "ima'), "asked.jsonl:2: not valid JSON"),
        (line("asked.jsonl", 2, "[]"), "asked.jsonl:2: expected a JSON object"),
        (cut("asked.jsonl", 0.95), "asked.jsonl:3: not valid JSON"),
        (put("asked.jsonl", bytes(300)), "asked.jsonl:1: not valid JSON"),
        (put("asked.jsonl", b'"\xe4"\n'), "asked.jsonl is not UTF-8"),
        (row("asked.jsonl", 3, "prompt"), "asked.jsonl:3: the field 'prompt' is missing"),
        (row("asked.jsonl", 3, kind=5), "asked.jsonl:3: kind must be one of"),
        (row("asked.jsonl", 1, image=None), "asked.jsonl:1: image must be text"),
        (put("asked.settings.json", "[1]"), "asked.settings.json must contain named settings"),
        (put("asked.settings.json", b"\xff"), "asked.settings.json is not UTF-8"),
    ],
)
def test_a_spoilt_row_of_a_finished_stage_has_its_place(tmp_path, spoil, message):
    def ask(numbers):
        return [Prompt(f"q{number}", "a.png", "What?").to_row() for number in numbers]

    def records():
        with Run(tmp_path) as run:
            return run.records(Prompt, "asked", range(3), ask, settings={}, batch=2, title="asking")

    assert [prompt.id for prompt in records()] == ["q0", "q1", "q2"]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        records()


@pytest.mark.parametrize(
    ("command", "left_out"),
    [
        (
            "check --model tiny --data pairs.jsonl --skip-bad --json",
            "Left out 3 of the 4 pairs, which cannot be used: pairs.jsonl:2: not",
        ),
        ("check --model tiny --data pairs.jsonl --skip-bad --json", "pairs.jsonl:3: the image ../a.png lies outside"),
        (
            "train --model tiny --data pairs.jsonl --skip-bad --dry-run --adapter-path out --json",
            "Left out 3 of the 4 pairs, which cannot be used",
        ),
        (
            "run seva --model tiny --prompts prompts.jsonl --skip-bad --dry-run --json",
            "Left out 1 of the 4 prompts, which cannot be used",
        ),
        ("run seva --model tiny --images photos --skip-bad --dry-run --json", "1 that cannot be used"),
    ],
)
def test_skip_bad_goes_on_and_counts(command, left_out, kit, tmp_path, monkeypatch, capsys):
    copy_kit(kit, tmp_path, command)
    for spoil in (line("pairs.jsonl", 2, "{"), row("pairs.jsonl", 3, images=["../a.png"]), cut("photos/3.png")):
        spoil(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    said = capsys.readouterr()
    assert left_out in " ".join(said.err.split())
    told = json.loads(said.out)
    assert told["images"] == (1 if "pairs" in command else 3)


def test_what_can_be_made_again_is(kit, tmp_path, monkeypatch, capsys):
    """Damaged checkpoints and logs cost time, not the run: it ends with the same adapter."""
    shutil.copytree(kit / "runs/seva", tmp_path / "runs/seva")
    shutil.copy(kit / "seva.yaml", tmp_path)
    newest, older = (f"runs/seva/checkpoints/step-{step:07d}" for step in (12, 9))
    for spoil in (
        field(f"{newest}/state.json", "source", 5),
        cut(f"{older}/adapter.safetensors"),
        line("runs/seva/metrics.jsonl", 2, "5"),
        gone("runs/seva/adapter"),
        gone("runs/seva/after.jsonl"),
    ):
        spoil(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-c", "seva.yaml", "--output", "runs/seva"]) == 0
    assert capsys.readouterr().err.count("is damaged") == 2
    for name in ("adapter/adapters.safetensors", "after.jsonl", "pairs.jsonl"):
        assert (tmp_path / "runs/seva" / name).read_bytes() == (kit / "whole/seva" / name).read_bytes(), name
