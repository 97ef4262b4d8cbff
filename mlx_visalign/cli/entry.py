"""Where a command begins and ends, so that no signal and no closed pipe gives a traceback. Imports nothing slow."""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from mlx_visalign.utils.signals import asked_code, take_signals


def main() -> Any:
    """`visalign`, `mlx_visalign` and `python -m mlx_visalign`. Returns the exit code."""
    take_signals()
    return _ended(_command)


def convert() -> Any:
    """`visalign-convert` and `python -m convert`. Returns the exit code."""
    take_signals()
    return _ended(_convert)


def _command() -> int:
    from mlx_visalign.cli.main import main

    return main()


def _convert() -> int:
    from mlx_visalign.convert.cli import main

    return main()


def _ended(command: Callable[[], int]) -> Any:
    """The command's exit code; 128 + signal after a signal, and 141 if nobody reads on (`visalign methods | head -1`)."""
    code: Any = 1
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is escaped, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = command()
        except SystemExit as error:  # by argparse
            code = error.code
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it is where it was closed beforehand
                stream.flush()
    except BaseException as error:
        if isinstance(error, BrokenPipeError):
            code = 128 + signal.SIGPIPE
        elif isinstance(error, OSError) and error.filename is None:  # no file's: what was printed could not be written
            code = 2
            os.write(2, f"visalign: the output could not be written: {error.strerror}.\n".encode())
        elif asked_code() is None:
            raise
        _say_no_more()
    asked = asked_code()
    if asked is not None and os.isatty(2):
        os.write(2, b"\x1b[?25h")  # a bar that was stopped twice may not have shown the cursor again
    return code if asked is None or code == 0 else asked


def _say_no_more() -> None:
    """What is not yet written goes nowhere, or Python would try again when it ends, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
