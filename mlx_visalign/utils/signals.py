"""Signal handling: Ctrl-C, `kill` and a closed terminal.

Fast to import, so that a command can take signals before anything else.
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
LATER = 0.02  # seconds until a stop that came at a bad moment is raised again

_asked: int | None = None  # the first signal that asked this process to stop
_working = False


class Stopped(KeyboardInterrupt):
    """The user asked to stop, by `signum`."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


def exit_code(stop: KeyboardInterrupt) -> int:
    """Exit code 128 + signal, as in shells (Ctrl-C: 130)."""
    return 128 + (stop.signum if isinstance(stop, Stopped) else signal.SIGINT)


def take_signals() -> None:
    """Install handlers that end the process without a traceback.

    For each of `SIGNALS`, except one that is ignored (nohup). Within `working` they raise `Stopped`; elsewhere there is
    nothing to clean up, and the process exits at once with code 128 + signal.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _stop)
    sys.unraisablehook = _unraisable


def asked_code() -> int | None:
    """Exit code of a stop signal received, else None."""
    return None if _asked is None else 128 + _asked


@contextmanager
def working() -> Iterator[None]:
    """Signals raise `Stopped` within the block, for cleanup."""
    global _working
    _working = True
    try:
        yield
    finally:
        _working = False


class Stop:
    """Flag: was the job asked to stop?"""

    def __init__(self) -> None:
        self.signum: int | None = None

    def set(self, signum: int = signal.SIGINT) -> None:
        self.signum = signum

    def is_set(self) -> bool:
        return self.signum is not None

    def end(self) -> None:
        """Raise `Stopped` if a stop was requested."""
        if self.signum is not None:
            raise Stopped(self.signum)


@contextmanager
def stop_waits() -> Iterator[Stop]:
    """A first signal only sets the yielded flag.

    The job then stops at its next safe point. A second Ctrl-C stops at once, as usual.
    """
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
                os.write(2, b"\nStopping after this step (press Ctrl-C again to stop now).\n")  # print is not safe in a handler

    try:
        for signum in SIGNALS:
            # A signal without a handler is ignored or ends the process, and that stays so. Threads cannot set handlers.
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
    if again and signum in (signal.SIGTERM, signal.SIGHUP):  # already stopping; a closed terminal sends more than one
        return
    second_ctrl_c = again and signum == signal.SIGINT
    if _at_a_bad_moment(frame) and not second_ctrl_c:
        _stop_later()
    else:
        raise Stopped(_asked)


def _at_a_bad_moment(frame: FrameType | None) -> bool:
    """In an import, which would stay half done and may swallow the exception, or in a finaliser, which does swallow it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _stop_later() -> None:
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, LATER)


def _unraisable(lost: Any) -> None:
    """Handles exceptions that Python cannot propagate, as from a garbage-collection callback."""
    if isinstance(lost.exc_value, Stopped):
        _stop_later()
    else:
        sys.__unraisablehook__(lost)


def _let_go_of_a_closed_terminal() -> None:
    """Redirect output to /dev/null if the terminal is gone: a failed print must not prevent saving."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
