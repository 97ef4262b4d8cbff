"""A stage's file: whole or partial, never torn; the same rows however often the way to them was cut short."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_stage import BATCH, ITEMS, work

from mlx_visalign.runs.stage import Stage, fingerprint
from mlx_visalign.utils.errors import UserError

TESTS = Path(__file__).parents[1] / "helpers"
SETTINGS = {"seed": 1}


def complete(folder: Path, work=work, items=ITEMS, batch=BATCH) -> Stage:
    stage = Stage(folder, "toy")
    stage.complete(items, work, SETTINGS, batch, "toy")
    return stage


def stop_at_call(number: int):
    """`work`, but its call `number`, counted from 1, raises."""
    calls = []

    def stopping(items):
        calls.append(items)
        if len(calls) == number:
            raise KeyboardInterrupt
        return work(items)

    return stopping


def test_rows_come_back_in_order_and_the_partial_file_is_gone(tmp_path):
    stage = complete(tmp_path)
    assert stage.rows() == work_in_batches()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.jsonl", "toy.settings.json"]


def work_in_batches():
    return [row for start in range(0, len(ITEMS), BATCH) for row in work(ITEMS[start : start + BATCH])]


def test_present_means_done(tmp_path):
    complete(tmp_path)
    assert complete(tmp_path, work=stop_at_call(1)).rows() == work_in_batches()


def test_a_stop_costs_the_batch_in_hand_only(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, work=stop_at_call(8))
    seen = []
    assert complete(tmp_path, work=lambda items: seen.append(items[0]) or work(items)).rows() == work_in_batches()
    assert seen[0] == 7 * BATCH


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_line_is_dropped_and_only_its_batch_made_again(tmp_path, cut):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, work=stop_at_call(4))
    partial = tmp_path / "toy.partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-cut])
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, work=stop_at_call(3))  # two more batches on top of the two that were left
    seen = []
    assert complete(tmp_path, work=lambda items: seen.append(items[0]) or work(items)).rows() == work_in_batches()
    assert seen[0] == 4 * BATCH


def test_batches_that_give_no_rows_are_not_made_again(tmp_path):
    calls = []

    def nothing(items):
        calls.append(items)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return []

    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, work=nothing, items=[0, 1, 2], batch=1)
    assert complete(tmp_path, work=nothing, items=[0, 1, 2], batch=1).rows() == []
    assert calls == [[0], [1], [2], [2]]


def test_a_smaller_batch_goes_on_where_a_larger_one_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, work=stop_at_call(3))
    rows = complete(tmp_path, batch=1).rows()
    assert [row["item"] for row in rows] == [row["item"] for row in work_in_batches()]


def test_a_stage_of_nothing_is_done_at_once(tmp_path):
    assert complete(tmp_path, items=[]).rows() == []


def test_a_number_that_is_not_finite_is_told_and_not_written(tmp_path):
    with pytest.raises(UserError, match=r"toy: one of the rows .* not finite"):
        complete(tmp_path, work=lambda items: [{"score": float("nan")}])
    assert (tmp_path / "toy.partial.jsonl").read_bytes() == b""


def test_a_full_disk_is_told_and_costs_the_batch_in_hand_only(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"toy\.partial\.jsonl could not be written.*make room"):
            complete(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    calls = []
    assert complete(tmp_path, work=lambda items: calls.append(items) or work(items)).rows() == work_in_batches()
    assert 0 < len(calls) < len(ITEMS) // BATCH


def test_rows_without_their_settings_are_refused(tmp_path):
    complete(tmp_path)
    (tmp_path / "toy.settings.json").unlink()
    with pytest.raises(UserError, match=r"no toy\.settings\.json"):
        Stage(tmp_path, "toy").begun(SETTINGS)


def test_unreadable_settings_are_named(tmp_path):
    complete(tmp_path)
    (tmp_path / "toy.settings.json").write_text("{")
    with pytest.raises(UserError, match=r"toy\.settings\.json: not valid JSON"):
        Stage(tmp_path, "toy").begun(SETTINGS)


def test_items_are_told_apart_by_content_and_order():
    assert fingerprint([1, "a"]) == fingerprint((1, "a"))
    assert len({fingerprint(items) for items in ([1, 2], [2, 1], [12], ["1", "2"], [])}) == 5


def run_until_killed(folder: Path, batches: int) -> None:
    """Start the stage in a process of its own and SIGKILL it some moment after `batches` of its batches are done."""
    process = subprocess.Popen([sys.executable, TESTS / "toy_stage.py", folder], env=environment())
    partial = folder / "toy.partial.jsonl"
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= batches):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.01))
    process.kill()
    assert process.wait() == -signal.SIGKILL


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS.parent)}


def test_kills_at_random_moments_leave_no_trace(tmp_path):
    for batches in (random.randint(1, 8), random.randint(12, 20), random.randint(24, 32)):
        run_until_killed(tmp_path, batches)
    subprocess.run([sys.executable, TESTS / "toy_stage.py", tmp_path], env=environment(), check=True)
    expected = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in work_in_batches())
    assert (tmp_path / "toy.jsonl").read_bytes() == expected.encode()
