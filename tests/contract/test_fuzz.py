"""A slice of what `make fuzz` tries, and whether it sees what it is there to see."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import fuzzing
import mutations
import pytest
from fuzzing import Outcome, attempt, attempted, filled, judged, make_files

KINDS = {name: kind for name, kind in fuzzing.KINDS.items() if not kind.runs}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is the process's own, from its beginning")
SLICE = 5  # inputs of each kind; `make fuzz` has 50,000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "files"
    make_files(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_accepted(name, files):
    """Else everything would be refused for the wrong reason."""
    kind = KINDS[name]
    first = [(kind.files[0], command) for command in dict.fromkeys(kind.commands)]
    for file, command in [*first, *((file, kind.commands[0]) for file in kind.files[1:])]:
        outcome = judged(Outcome(name, 0, file, filled(command, file)), files)
        shutil.rmtree(files / "out", ignore_errors=True)
        assert outcome.code == 0 and not outcome.wrong, outcome


@pytest.mark.parametrize("name", KINDS)
def test_files_that_are_almost_right_end_well_or_with_a_sentence(name, files):
    found = [attempt(name, number, 2026, files) for number in range(SLICE)]
    assert not [outcome for outcome in found if outcome.wrong]


def test_an_input_is_decided_by_its_number(files):
    draws = [[attempted(name, number, 5, files) for name in KINDS for number in range(3)] for _ in range(2)]
    assert draws[0] == draws[1]
    sound = {name: (files / name).read_bytes() for name, _, _ in draws[0]}
    assert sum(sound[file] != data for file, _, data in draws[0]) > 0.8 * len(draws[0])


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: 3, "exit code"),
        (lambda: 2, "no message"),
        (lambda: Path("../elsewhere").write_text("out"), "reached outside"),
        (lambda: Path("../secrets/secret.png").read_bytes() and 0, "reached outside"),
        (lambda: Path("words.json").rename("../words.json") and 0, "reached outside"),
        (lambda: subprocess.run(["true"]).returncode, "reached outside"),
        (lambda: Path("left").write_text("behind") and 0, "left something"),
        (lambda: os.utime("prompts.jsonl"), "left something"),
        (lambda: print("a.py:1: UserWarning: odd", file=sys.stderr), "words of a library"),
        (lambda: [time.perf_counter() for _ in iter(int, 1)], "hang"),
        pytest.param(lambda: len(bytearray(80 << 20)) * 0, "memory", marks=LINUX),
    ],
)
def test_what_a_command_must_not_do_is_seen(fault, wrong, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "secrets").mkdir()
    for name in ("files/words.json", "files/prompts.jsonl", "secrets/secret.png"):
        (tmp_path / name).write_text("[]")
    monkeypatch.setattr(fuzzing, "main", lambda _: fault() or 0)
    monkeypatch.setattr(fuzzing, "HANG", 1)
    monkeypatch.setattr(fuzzing, "MEMORY", 20 << 20)
    outcome = judged(Outcome("words", 0, "words.json", "check"), tmp_path / "files")
    assert wrong in outcome.wrong


def test_trees_never_lead_back_into_themselves():
    row = b'{"a": [1, {"b": [2, [3, {"c": null}]]}], "d": {"e": "f"}}'
    for seed in range(300):
        mutations.as_json(Random(seed), row)
