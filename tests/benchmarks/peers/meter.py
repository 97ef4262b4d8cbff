"""The one meter of all peers: every step's CPU and wall seconds, and how far memory rises above the loaded model."""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Made when everything is loaded; `mark` at the end of each step. The first step warms up and is not reported.

    On a GPU `peak` is the framework's own count, set back before, and `loaded` what it holds now.
    """

    def __init__(self, peak: Callable[[], int] | None = None, loaded: int = 0) -> None:
        if peak is None:
            if CLEAR.exists():
                CLEAR.write_text("5")  # the high-water mark falls to what is held now
            peak, loaded = _high_water, _high_water()
        self.peak, self.loaded = peak, loaded
        self.marks = [_now()]

    def mark(self) -> None:
        self.marks.append(_now())

    def steps(self) -> dict[str, list[float]]:
        """CPU and wall seconds of each step after the first."""
        pairs = list(zip(self.marks[1:], self.marks[2:], strict=False))
        return {
            "cpu": [after[0] - before[0] for before, after in pairs],
            "wall": [after[1] - before[1] for before, after in pairs],
        }

    def memory(self) -> int:
        """Bytes, the warm-up's too: the most that was held at once, above what was held when everything was loaded."""
        return self.peak() - self.loaded


def report(packages: tuple[str, ...], **figures: Any) -> None:
    """What a peer's process says, as its last line."""
    print(json.dumps({"versions": {name: version(name) for name in packages}, **figures}))


def _now() -> tuple[float, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, time.perf_counter()


def _high_water() -> int:
    if STATUS.exists():
        [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
