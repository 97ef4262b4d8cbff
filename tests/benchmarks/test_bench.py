"""`make bench` on the smallest shape: our row's figures, a peer that is not there, and what counts as reached."""

import json
import math
import sys

import bench
import ours
import pytest
import sampling
import shape

SMALL = shape.Shape(
    width=32, inner=48, layers=2, heads=2, words=640, tower=16, tower_layers=3, pixels=56, prompt=80, chosen=9, rejected=5
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "llava"
    shape.make(folder, SMALL)
    return folder


def said(main, capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["peer", *map(str, arguments)])
    main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_our_row(folder, capsys, monkeypatch):
    once = said(ours.main, capsys, monkeypatch, folder, "--steps", 2)
    again = said(ours.main, capsys, monkeypatch, folder, "--steps", 1, "--checkpoint", "--pairs", 2)
    assert once["loss"] == pytest.approx(math.log(2), abs=1e-6) == again["loss"]
    assert once["logps"] == pytest.approx(again["logps"])
    assert len(once["cpu"]) == len(once["wall"]) == 2 and len(again["cpu"]) == 1
    assert min(once["cpu"] + once["once"]["cpu"]) > 0 and once["memory"] >= 0


def test_eight_answers_are_the_same_together_and_apart(folder, capsys, monkeypatch):
    found = said(sampling.main, capsys, monkeypatch, folder, "--tokens", 3)
    assert found["same"] and min(found["cpu"].values()) > 0


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(tmp_path):
    script = tmp_path / "absent.py"
    script.write_text("import a_trainer_nobody_has")
    there = tmp_path / "there.py"
    there.write_text("print('{\"loss\": 0.6931}')")
    peer = bench.Peer("absent", str(script))
    bench.measure([bench.Peer("there", str(there)), peer], tmp_path, rounds=2, steps=1, threads=1)
    assert peer.runs == [] and "No module named 'a_trainer_nobody_has'" in peer.failed


def test_a_row_that_computes_something_else_stops_the_bench(tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text('print(\'{"loss": 0.6931, "logps": [-5.0, -6.0]}\')')
    other = tmp_path / "other.py"
    other.write_text('print(\'{"loss": 0.6931, "logps": [-5.0, -6.1]}\')')
    with pytest.raises(SystemExit, match="Other log-probabilities"):
        bench.measure([bench.Peer("one", str(script)), bench.Peer("two", str(other))], tmp_path, 1, 1, 1)


def test_goals_are_asked_of_peers_that_ran():
    rows = {row.name: row for row in bench.peers()}
    for name, seconds, memory in ((bench.OWN, 2.0, 10), (bench.CHECKPOINTED, 3.0, 2), (bench.MLX_VLM, 8.0, 30)):
        rows[name].runs = [{"cpu": [seconds], "memory": memory, "once": {"cpu": [1.0]}}]
    drawn = {"cpu": {"together": 1.0, "apart": 4.0}}
    counted = {"step": 24, "step with its reference, prefix hot": 27, "step with its reference, pair imported": 37}
    goals = list(bench.goals_of({name: row for name, row in rows.items() if row.runs}, drawn, counted))
    assert [(round(goal.found, 2), goal.reached) for goal in goals] == [
        (4.0, True),
        (2.67, True),
        (4.0, False),
        (24, True),
        (27, True),
        (37, False),
    ]
