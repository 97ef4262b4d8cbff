"""Entry points: signals and closed pipes without tracebacks.

Imports nothing slow, so that signals are handled from the start.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from mlx_visalign.utils.signals import asked_code, take_signals


def main() -> Any:
    """`visalign`, `mlx_visalign`, `python -m mlx_visalign`; returns the exit code."""
    take_signals()
    return _ended(_command)


def convert() -> Any:
    """`visalign-convert` and `python -m convert`; returns the exit code."""
    take_signals()
    return _ended(_convert)


def _command() -> int:
    from mlx_visalign.cli.main import main

    return main()


def _convert() -> int:
    from mlx_visalign.convert.cli import main

    return main()


def _ended(command: Callable[[], int]) -> Any:
    """The command's exit code; 128 + signal after a signal, 141 after a closed pipe (`visalign methods | head -1`)."""
    code: Any = 1
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the terminal cannot encode, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = command()
        except SystemExit as error:  # by argparse
            code = error.code
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None if it was closed before Python started
                stream.flush()
    except BaseException as error:
        if isinstance(error, BrokenPipeError):
            code = 128 + signal.SIGPIPE
        elif isinstance(error, OSError) and error.filename is None:  # not about a file: writing to stdout failed
            code = 2
            os.write(2, f"visalign: the output could not be written: {error.strerror}.\n".encode())
        elif asked_code() is None:
            raise
        _discard_output()
    asked = asked_code()
    if asked is not None and os.isatty(2):
        os.write(2, b"\x1b[?25h")  # show the cursor: a progress bar interrupted twice may have left it hidden
    return code if asked is None or code == 0 else asked


def _discard_output() -> None:
    """Discard buffered output; otherwise Python would try to write it again at exit, and print an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
