"""Both faces of a bar: one that is drawn, and lines for a file."""

import io

import pytest
from rich.console import Console

from mlx_visalign import progress as module


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


def test_a_pipe_sees_a_line_now_and_then(capsys):
    with module.progress("Answering", 400, done=100) as bar:
        for _ in range(300):
            bar.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 15
    assert lines[0].startswith("Answering: 120/400, ")
    assert lines[-1].startswith("Answering: 400/400, ")
    assert lines[-1].endswith("step/s, 0:00 left")


def test_text_in_brackets_is_text(capsys):
    module.say("[bold] is a file name here")
    assert capsys.readouterr().err == "[bold] is a file name here\n"
