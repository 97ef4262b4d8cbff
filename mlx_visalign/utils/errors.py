"""The one exception a user's mistake raises. The command line prints its text and exits with 2, without a traceback."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

NAMED = 20  # of many faults so many are named, and the others counted
ROW = 100  # characters
NAME = 300  # of a file


class UserError(Exception):
    """What was expected, what came, and what to do, in one or a few sentences. `each`: the faults it tells, one by one."""

    def __init__(self, text: str, each: Sequence[str] = ()):
        super().__init__(text)
        self.each = tuple(each) or (text,)


def sentence(error: UserError | OSError) -> str:
    """What to tell of it: of a system's error, which file and why. One that is about no file is raised again."""
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None:
        raise error
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{name if len(name) < NAME else name[: NAME // 2] + '...'} cannot be used: {error.strerror}."


def plainly(error: BaseException) -> str:
    """What a library says of it, for people: the first line, and a type without Python's brackets."""
    return re.sub(r"<class '(.*?)'>", r"\1", str(error).strip().partition("\n")[0]) or type(error).__name__


def listed(head: str, items: Iterable[object], advice: str = "") -> str:
    """ "HEAD: a; b; ... and 3 more. ADVICE": at most 20 of the items, each on its own line where a row would be long."""
    every = [str(item) for item in items]
    few = every[:NAMED] + [f"and {len(every) - NAMED:,} more"] * (len(every) > NAMED)
    row = "; ".join(item.removesuffix(".") for item in few)
    if len(few) > 1 and len(row) > ROW:
        return "\n".join([f"{head}:", *(f"  {item}" for item in few), *([advice] if advice else [])])
    return f"{head}: {row}{'' if row.endswith('?') else '.'} {advice}".rstrip()


def collect(jobs: Iterable[Callable[[], T]]) -> list[T]:
    """What every job gives. Raises one UserError that tells the faults of all."""
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
    """Raise a UserError that tells all of these, if there are any."""
    if faults:
        raise UserError(faults[0] if len(faults) == 1 else listed(f"{len(faults)} things are wrong", faults), faults)
