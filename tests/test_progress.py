"""Both faces of a bar: one that is drawn, and lines for a file."""

import io
import os
import signal
import threading

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


def test_a_terminal_is_not_given_orders_by_a_file_name(capsys):
    module.say("\x1b]0;title\x07 \x9b31m is a file name,\nand so is café")
    assert capsys.readouterr().err == "\\x1b]0;title\\x07 \\x9b31m is a file name,\nand so is café\n"


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_only_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), module.ctrl_c_waits() as stop:
        press_ctrl_c()
        assert stop.is_set()
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_of_its_own_may_wait_too():
    seen = []

    def job():
        with module.ctrl_c_waits() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert seen == [False]
