"""Both faces of a bar: one that is drawn, and lines for a file."""

import io
import itertools

import pytest
from rich.console import Console

from mlx_visalign.utils import console as module


@pytest.fixture
def terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(module, "console", console)
    return console.file


def test_a_terminal_sees_share_rate_and_note(terminal):
    with module.progress("Answering", 4, done=1, unit="image") as bar:
        bar.advance(2, "412 tokens/s")
        bar.advance(1, "415 tokens/s")
    last = terminal.getvalue()
    for part in ("Answering", "4/4", "image/s", "415 tokens/s"):
        assert part in last


@pytest.fixture
def said(capsys, monkeypatch):
    """The lines that a pipe sees of a job whose steps take so many seconds, and what was done at each."""

    def run(steps, seconds, done=0):
        clock = itertools.count(0, seconds)
        now = [next(clock)]
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
        with module.progress("Answering", steps, done=done) as bar:
            for _ in range(done, steps):
                now[0] = next(clock)
                bar.advance(1)
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("Answering: ") for line in lines)
        return lines, [int(line.split()[1].partition("/")[0]) for line in lines]

    return run


def test_a_pipe_sees_the_first_and_the_last_of_what_goes_fast(said):
    lines, done = said(400, 0.01, done=100)
    assert done == [101, 400]
    assert lines == ["Answering: 101/400, 100.00 step/s, 0:03 left", "Answering: 400/400, 100.00 step/s, 0:00 left"]


def test_a_pipe_sees_a_line_now_and_then_of_what_takes_long(said):
    assert said(400, 60)[1] == [*range(1, 400, 20), 400]
    assert said(5, 60)[1] == [1, 2, 3, 4, 5]
    assert said(60, 4)[1] == [*range(1, 60, 3), 60]  # ten seconds apart


def test_text_in_brackets_is_text(capsys):
    module.say("[bold] is a file name here")
    assert capsys.readouterr().err == "[bold] is a file name here\n"


def test_a_terminal_is_not_given_orders_by_a_file_name(capsys):
    module.say("\x1b]0;title\x07 \x9b31m is a file name,\nand so is café")
    assert capsys.readouterr().err == "\\x1b]0;title\\x07 \\x9b31m is a file name,\nand so is café\n"
