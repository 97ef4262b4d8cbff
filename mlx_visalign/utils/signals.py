"""How a command is asked to stop (Ctrl-C, `kill`, a terminal that is closed), and what then happens.

Fast to import: a command is ready to be stopped before anything else.
"""

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LATER = 0.02  # seconds until a stop that came at a bad moment comes once more

_asked: int | None = None  # the signal by which this process was asked to stop
_working = False


class Stopped(KeyboardInterrupt):
    """The user asked to stop, by `signum`."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 + signal, as a shell has it: 130 after Ctrl-C."""
    return 128 + (stop.signum if isinstance(stop, Stopped) else signal.SIGINT)


def take_signals() -> None:
    """From now on each of `SIGNALS` ends this process without a traceback; one that is ignored (nohup) stays so.

    While there is nothing to tidy up it ends at once, with exit code 128 + signal; within `working`, by `Stopped`.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _stop)
    sys.unraisablehook = _unraisable


def asked_code() -> int | None:
    """The exit code if a signal that was taken has asked this process to stop, else None."""
    return None if _asked is None else 128 + _asked


@contextmanager
def working() -> Iterator[None]:
    """Within the block there may be something to tidy up, so signals that were taken raise `Stopped`."""
    global _working
    _working = True
    try:
        yield
    finally:
        _working = False


class Stop:
    """Whether a job was asked to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def set(self, signum: int = signal.SIGINT) -> None:
        self.signum = signum

    def is_set(self) -> bool:
        return self.signum is not None

    def end(self) -> None:
        """Stop now, if asked to: raises `Stopped`."""
        if self.signum is not None:
            raise Stopped(self.signum)


@contextmanager
def stop_waits() -> Iterator[Stop]:
    """A first signal only sets what is yielded, for the job to stop where it can; a second Ctrl-C stops at once, as usual."""
    stop = Stop()
    usual: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        global _asked
        _let_go_of_a_closed_terminal()
        if usual[signum] is _stop:
            _asked = _asked or signum
        if signum == signal.SIGINT:
            signal.signal(signum, usual[signum])
        if not stop.is_set():
            stop.set(signum)
            with suppress(OSError):
                os.write(2, b"\nStopping after this step (Ctrl-C again: at once).\n")  # print is not safe in a handler

    try:
        for signum in SIGNALS:
            # Where nobody handles it, it is ignored or ends the process, and so it stays. Threads may not handle any.
            if callable(signal.getsignal(signum)):
                with suppress(ValueError):
                    usual[signum] = signal.getsignal(signum)
                    signal.signal(signum, note)
        yield stop
    finally:
        for number, handler in usual.items():
            with suppress(ValueError):
                signal.signal(number, handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    global _asked
    _let_go_of_a_closed_terminal()
    again = _asked is not None
    _asked = _asked or signum
    if not _working:
        os._exit(128 + _asked)
    if again and signum in (signal.SIGTERM, signal.SIGHUP):  # it is stopping, and a closed terminal says so more than once
        return
    impatient = again and signum == signal.SIGINT
    if _at_a_bad_moment(frame) and not impatient:
        _stop_later()
    else:
        raise Stopped(_asked)


def _at_a_bad_moment(frame: FrameType | None) -> bool:
    """Within an import, which would stay half done and may swallow the stop; or in a finaliser, which surely does."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _stop_later() -> None:
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, LATER)


def _unraisable(lost: Any) -> None:
    """What was raised where Python cannot pass it on, in a callback of its memory management for example."""
    if isinstance(lost.exc_value, Stopped):
        _stop_later()
    else:
        sys.__unraisablehook__(lost)


def _let_go_of_a_closed_terminal() -> None:
    """Writing to a terminal that is gone is an error, and words must not cost what is to be saved: they go nowhere."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
