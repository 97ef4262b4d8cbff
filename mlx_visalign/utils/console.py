"""Messages and progress bars on stderr.

A bar in a terminal; elsewhere (a file, a pipe) a plain line every few seconds.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mlx_visalign.utils.errors import UserError, listed

T = TypeVar("T")
R = TypeVar("R")


class Terminal(Console):
    """Rich's console, but broken pipes are left to `cli/entry`.

    Rich itself would exit with code 1.
    """

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that is being handled


console = Terminal(stderr=True, highlight=False)

CODES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
PLAIN_LINES, APART = 20, 10  # at most 20 lines a job, at least 10 s apart, when stderr is a file or a pipe


class Bar(Protocol):
    def advance(self, count: int, note: str = "") -> None:
        """Add `count` finished units.

        `note` is a short metric to show beside them, such as "412 tokens/s".
        """


def say(text: str) -> None:
    """Print one line to stderr, above any progress bar.

    Terminal control codes (in a file name, for example) are escaped.
    """
    console.print(text.translate(CODES), markup=False, soft_wrap=True)


def sift(rows: Iterable[T], read: Callable[[T], R], skip_bad: bool, what: str) -> list[R]:
    """Apply `read` to each row; report or skip failures.

    UserError lists all rows that `read` rejects; with `skip_bad` they are skipped, and it is raised only if none is left.
    One message counts and lists the skipped rows, which it calls `what`.
    """
    good: list[R] = []
    faults: list[str] = []
    bad = 0
    for row in rows:
        try:
            good.append(read(row))
        except UserError as error:
            bad += 1
            faults += error.each
    if not bad:
        return good
    advice = "Fix them, or leave them out with --skip-bad."
    if not good:
        raise UserError(listed(f"None of the {bad:,} {what} can be used", faults) if bad > 1 else "\n".join(faults), faults)
    if not skip_bad:
        raise UserError(listed(f"{bad:,} of the {bad + len(good):,} {what} cannot be used", faults, advice), faults)
    say(listed(f"Left out {bad:,} of the {bad + len(good):,} {what}, which cannot be used", faults))
    return good


@contextmanager
def progress(title: str, total: int, *, done: int = 0, unit: str = "step") -> Iterator[Bar]:
    """Progress display: `title`, share done, rate and time left.

    `done` units were finished before this process started (a resumed run).
    """
    if not console.is_terminal:
        yield _PlainLines(title, total, done, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as display:
        yield _TerminalBar(display, title, total, done)


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f} {self.unit}/s" if speed else "", style="progress.data.speed")


class _TerminalBar:
    def __init__(self, display: Progress, title: str, total: int, done: int):
        self.display = display
        self.task = display.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int, note: str = "") -> None:
        self.display.update(self.task, advance=count, note=note)


class _PlainLines:
    """The first and last update, and in between one every `total // PLAIN_LINES` units, `APART` seconds apart or more."""

    def __init__(self, title: str, total: int, done: int, unit: str):
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.done_before = done
        self.started = time.perf_counter()
        self.next_line = (done, self.started)  # the units done and the time, both to be reached before the next line

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        now = time.perf_counter()
        units, moment = self.next_line
        if (self.done >= units and now >= moment) or self.done >= self.total:
            self.next_line = (self.done + self.total // PLAIN_LINES, now + APART)
            say(self._line(note))

    def _line(self, note: str) -> str:
        rate = (self.done - self.done_before) / max(time.perf_counter() - self.started, 1e-9)
        seconds_left = round((self.total - self.done) / rate)
        left = f"{seconds_left // 60}:{seconds_left % 60:02d} left"
        parts = [f"{self.done}/{self.total}", f"{rate:.2f} {self.unit}/s", left, note]
        return f"{self.title}: " + ", ".join(part for part in parts if part)
