"""Ctrl-C, `kill` and a closed terminal at every kind of moment: an exit code, at most one sentence, never a traceback."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlx_visalign.utils import signals as stopping
from mlx_visalign.utils.signals import SIGNALS, Stopped, stop_waits, take_signals

ROOT = Path(__file__).parents[2]
BEGIN = """
import gc, os, signal, sys, weakref
from mlx_visalign.cli import entry
from mlx_visalign.utils.signals import *
def stop(signum=signal.SIGINT): os.kill(os.getpid(), signum)
def busy():
    for _ in range(10**9): pass
class Loop:
    def __del__(self): self.end()
    def end(self): pass
"""


def python(script, *arguments, **options):
    """A process of its own: exit code and everything it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", script, *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    done = subprocess.run(command, env=environment, text=True, timeout=120, **options)
    return done.returncode, done.stdout


def command_of(body):
    """A command whose work is `body`."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    return f"{BEGIN}\ndef command():\n    with working():\n{lines}\n    return 0\n{END}"


def ended(body):
    return python(command_of(body))


END = "take_signals()\nsys.exit(entry._ended(command))"
DURING_IMPORT = """
import os, signal, sys
name, signum = sys.argv[1], int(sys.argv[2])
class Finder:
    def find_spec(self, wanted, path, target=None):
        if wanted == name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signum)
sys.meta_path.insert(0, Finder())
from mlx_visalign.cli.entry import main
sys.argv[1:] = sys.argv[3:]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "signum"),
    [
        ("mlx_visalign.cli.main", signal.SIGINT),
        ("argparse", signal.SIGHUP),
        ("numpy", signal.SIGTERM),
        ("mlx.core", signal.SIGINT),
        ("mlx_vlm", signal.SIGINT),  # by then the work has begun
        ("transformers", signal.SIGHUP),
    ],
)
def test_a_stop_while_something_is_imported(module, signum, tmp_path):
    assert python(DURING_IMPORT, module, str(int(signum)), "doctor", cwd=tmp_path) == (128 + signum, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    "body",
    [
        "stop({0}); busy()",
        "it = Loop(); it.end = lambda: stop({0})\ndel it\nbusy()",
        "it = Loop(); kept = weakref.ref(it, lambda _: stop({0}))\ndel it\nbusy()",
        "gc.callbacks.append(lambda *_: (gc.callbacks.clear(), stop({0}))); gc.collect(); busy()",
        "try: stop({0}); busy()\nfinally: raise ValueError('what the stop became')",
        "try: stop({0}); busy()\nexcept BaseException: raise RuntimeError('what the stop became') from None",
        "try: stop({0}); busy()\nfinally: [stop({0}) for _ in range(3)]",
        "try: stop({0}); busy()\nfinally: stop(signal.SIGINT); busy()",
        "import atexit; atexit.register(lambda: (stop({0}), busy())); stop({0}); busy()",
    ],
    ids=[
        "plain",
        "finaliser",
        "weak reference",
        "garbage collection",
        "replaced by another error",
        "caught and replaced",
        "and thrice again",
        "and again while tidying up",
        "and while Python ends",
    ],
)
def test_a_stop_during_the_work(body, signum):
    assert ended(body.format(int(signum))) == (128 + signum, "")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_stop_when_the_work_is_done(signum):
    assert ended(f"import atexit; atexit.register(lambda: (stop({int(signum)}), busy()))") == (128 + signum, "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_that_says_so_again_cannot_disturb_the_tidying_up(signum):
    again = (
        f"try: stop({int(signum)}); busy()\nfinally:\n    stop(signal.SIGHUP); stop(signal.SIGTERM); print('tidy', flush=True)"
    )
    assert ended(again) == (128 + signum, "tidy\n")


def test_other_errors_and_other_exit_codes_are_left_alone():
    code, said = ended("raise ValueError('a fault')")
    assert code == 1 and "Traceback" in said and "a fault" in said
    code, said = ended("class Bad:\n    def __del__(self): raise ValueError('lost')\nBad()")
    assert code == 0 and "Exception ignored" in said and "lost" in said
    assert ended("sys.exit(5)") == (5, "")


def test_what_is_ignored_stays_ignored():
    """As nohup has it, and a shell for what runs in the background."""
    before = f"for each in {[int(signum) for signum in SIGNALS]}: signal.signal(each, signal.SIG_IGN)\n"
    script = BEGIN + before + f"def command():\n    [stop(each) for each in SIGNALS]; print('done'); return 0\n{END}"
    assert python(script) == (0, "done\n")


# -- training waits for its update ------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """Signals as a command has them; afterwards as they were."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    monkeypatch.setattr(stopping, "_asked", None)
    monkeypatch.setattr(stopping, "_working", True)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    take_signals()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def press(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


def test_only_a_second_ctrl_c_stops_at_once(capfd):
    with pytest.raises(KeyboardInterrupt), stop_waits() as stop:
        press()
        assert stop.is_set()
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err.count("Stopping after this step") == 1


@pytest.mark.parametrize("signum", SIGNALS)
def test_every_signal_waits_for_the_step(signum, taken, capfd):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped, stop_waits() as stop:
        press(signum)
        assert stop.is_set()
        for _ in range(3):  # a terminal that closes sends more than one
            press(signal.SIGHUP)
            press(signal.SIGTERM)
        stop.end()
    assert stopping.exit_code(stopped.value) == 128 + signum
    assert signal.getsignal(signum) is before
    assert capfd.readouterr().err.count("Stopping after this step") == 1
    with pytest.raises(Stopped):
        press()


def test_in_a_program_of_somebody_else_only_its_own_handlers_are_replaced():
    with stop_waits():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert callable(signal.getsignal(signal.SIGINT))


def test_a_thread_of_its_own_may_wait_too():
    seen = []

    def job():
        with stop_waits() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert seen == [False]


def test_what_is_to_be_saved_is_saved_when_the_terminal_is_gone(tmp_path):
    """Its reader is away before the signal comes, so that every write to it fails."""
    body = """
from mlx_visalign.utils.console import say
with stop_waits() as stop:
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGHUP)
    say("a word")
    print("another", flush=True)
    open("saved", "w").write(str(stop.is_set()))
    stop.end()
"""
    reader, terminal = os.openpty()
    command = [sys.executable, "-c", command_of(body.strip())]
    streams = {"stdin": subprocess.PIPE, "stdout": terminal, "stderr": terminal}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, **streams, cwd=tmp_path, env=environment) as process:
        os.close(terminal)
        os.close(reader)
        process.communicate(b"go\n", timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert (tmp_path / "saved").read_text() == "True"


# -- nobody reads on --------------------------------------------------------------------------------------------------


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("command", ["methods", "--help", "recipes --json", "run --help", "convert --help"])
def test_a_reader_who_has_seen_enough(command):
    writer = closed_pipe()
    script = f"import sys; sys.argv[1:] = {command.split()}; from mlx_visalign.cli.entry import main; sys.exit(main())"
    assert python(script, stdout=writer, stderr=subprocess.PIPE)[0] == 128 + signal.SIGPIPE
    os.close(writer)


def test_a_table_nobody_reads():
    writer = closed_pipe()
    script = f"{BEGIN}\nfrom mlx_visalign.cli.output import Result\ndef command(): Result.from_dict({{'a': 1}}).show()\n{END}"
    assert python(script, stdout=writer, stderr=subprocess.PIPE)[0] == 128 + signal.SIGPIPE
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_output_that_has_no_room():
    script = "import sys; sys.argv[1:] = ['methods']; from mlx_visalign.cli.entry import main; sys.exit(main())"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "visalign: the output could not be written: No space left on device.\n")


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    """A file's name that is not UTF-8, and letters on a terminal that has none of them."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    assert ended("print('\\udcff é')") == (0, "\\udcff \\xe9\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed):
    done = subprocess.run(f"{sys.executable} -m mlx_visalign methods {closed}", shell=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
