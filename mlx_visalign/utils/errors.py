"""UserError: the exception for a user's mistake.

The command line prints its text and exits with code 2, without a traceback.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

NAMED = 20  # faults listed in one message; the rest are counted
ROW = 100  # characters; longer lists get one line an item
NAME = 300  # characters of a file name


class UserError(Exception):
    """What was expected, what came, and what to do.

    `each`: the individual faults, if it reports several.
    """

    def __init__(self, text: str, each: Sequence[str] = ()):
        super().__init__(text)
        self.each = tuple(each) or (text,)


def sentence(error: UserError | OSError) -> str:
    """Message to print; for an OSError, file and reason.

    An OSError without a file name is raised again.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None:
        raise error
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{name if len(name) < NAME else name[: NAME // 2] + '...'} cannot be used: {error.strerror}."


def plainly(error: BaseException) -> str:
    """A library's error message on one line.

    The first line, with "<class 'x'>" shortened to "x".
    """
    return re.sub(r"<class '(.*?)'>", r"\1", str(error).strip().partition("\n")[0]) or type(error).__name__


def listed(head: str, items: Iterable[object], advice: str = "") -> str:
    """Format as "HEAD: a; b; and 3 more. ADVICE".

    At most 20 items are listed, one line each where a single line would be long.
    """
    every = [str(item) for item in items]
    few = every[:NAMED] + [f"and {len(every) - NAMED:,} more"] * (len(every) > NAMED)
    row = "; ".join(item.removesuffix(".") for item in few)
    if len(few) > 1 and len(row) > ROW:
        return "\n".join([f"{head}:", *(f"  {item}" for item in few), *([advice] if advice else [])])
    return f"{head}: {row}{'' if row.endswith('?') else '.'} {advice}".rstrip()


def collect(jobs: Iterable[Callable[[], T]]) -> list[T]:
    """Results of all jobs, or one UserError with all faults."""
    done: list[T] = []
    faults: list[str] = []
    for job in jobs:
        try:
            done.append(job())
        except UserError as error:
            faults += error.each
    refuse(faults)
    return done


def refuse(faults: Sequence[str]) -> None:
    """Raise one UserError that lists all faults, if any."""
    if faults:
        raise UserError(faults[0] if len(faults) == 1 else listed(f"{len(faults)} things are wrong", faults), faults)
