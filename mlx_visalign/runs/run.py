"""A run: its locked folder, and the stages in it."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import yaml

from mlx_visalign.data.records import Record, read_jsonl
from mlx_visalign.data.training_log import METRICS, read_metrics
from mlx_visalign.runs.run_folder import RunFolder
from mlx_visalign.runs.stage import Row, Stage, Work, fingerprint
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import claim, parse_json, read_text, remove, write_atomically
from mlx_visalign.utils.links import check_links, named
from mlx_visalign.utils.provenance import as_json
from mlx_visalign.utils.schema import convert

R = TypeVar("R", bound=Record)

PACKAGES = ("mlx-visalign", "mlx", "mlx-lm", "mlx-vlm", "transformers", "tokenizers", "numpy", "pillow")


class Run(RunFolder):
    """A run's folder, locked by one process at a time.

    Reading needs no lock; the first write locks the folder until `close`, or until the process ends.
    `reuse` is the folder of another run whose finished stages are copied where their settings agree.
    As a context manager it prints, on Ctrl-C, the `command` that resumes the run.
    """

    def __init__(self, folder: Path | str, *, reuse: Path | str | None = None, command: str = "the same command"):
        super().__init__(check_links(named(folder)))  # an existing folder is read, to resume the run
        self.reuse = None if reuse is None else Path(reuse)
        if self.reuse is not None:
            if not self.reuse.is_dir():
                raise UserError(f"--reuse: {self.reuse} is not a folder. Name the folder of an earlier run.")
            check_links(self.reuse)
        self.command = command
        self.after_stage: Callable[[], None] | None = None  # called after each stage, to refresh the report page
        self.died_in: str | None = None  # what an earlier process was doing when it was killed
        self._doing: str | None = None
        self._lock: BinaryIO | None = None

    def join_metrics(self, rounds: int) -> None:
        """Concatenate the rounds' metrics into `metrics.jsonl`.

        Updates are numbered continuously.
        """
        rows = [
            {**row, "iteration": 0, "round": number}
            for number in range(1, rounds + 1)
            for row in read_metrics(self.round(number) / METRICS)
        ]
        write_atomically(self.metrics, "".join(json.dumps(row | {"iteration": i}) + "\n" for i, row in enumerate(rows, 1)))

    def start(self, config: Mapping[str, Any]) -> None:
        """Lock the folder, write `config.yaml` and `versions.json`."""
        self._claim()
        write_atomically(self.config, yaml.safe_dump(as_json(config), sort_keys=False, allow_unicode=True))
        write_atomically(self.versions, json.dumps(installed_versions(), indent=1))

    def stage(
        self, name: str, items: Sequence[Any], work: Work, *, settings: Mapping[str, Any], batch: int, title: str
    ) -> list[Row]:
        """The rows of `NAME.jsonl`; missing ones are computed now.

        `work` takes up to `batch` consecutive items and returns any number of JSON rows; it must not depend on anything
        but the items and `settings`. Rows with a count named "tokens" make the bar show tokens/s.

        Raises `UserError` if rows exist that were made with other settings or items, naming the setting, both values and
        the file.
        """
        return self._finished(name, items, work, settings, batch, title).rows()

    def records(
        self,
        kind: type[R],
        name: str,
        items: Sequence[Any],
        work: Work,
        *,
        settings: Mapping[str, Any],
        batch: int,
        title: str,
    ) -> list[R]:
        """The rows of a `stage` as records.

        Raises `UserError`, with file and line, for a row that has been damaged since.
        """
        return read_jsonl(self._finished(name, items, work, settings, batch, title).whole, kind)

    def _finished(
        self, name: str, items: Sequence[Any], work: Work, settings: Mapping[str, Any], batch: int, title: str
    ) -> Stage:
        self._claim()
        everything = as_json({**settings, "items": fingerprint(items)})
        stage = Stage(self.folder, name)
        if not stage.begun(everything) and self.reuse is not None:
            stage.adopt(Stage(self.reuse, name), everything)
        with self.working(f"the stage {name}"):
            stage.complete(items, work, everything, batch, title)
        if self.after_stage is not None:
            self.after_stage()
        return stage

    @contextmanager
    def working(self, place: str) -> Iterator[None]:
        """Keep a marker file that names the current work.

        The marker survives a kill, so that the next process can report where this one died.
        """
        before = self._doing
        self._write_marker(place)
        try:
            yield
        finally:
            self._write_marker(before)

    def _write_marker(self, place: str | None) -> None:
        self._doing = place
        if place is None:
            remove(self._working)
        else:
            write_atomically(self._working, place)

    @property
    def _working(self) -> Path:
        return self.folder / ".working"

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Run":
        self._claim()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if isinstance(error, KeyboardInterrupt):
            say(f"Stopped. Finished work is kept in {self.folder}; to resume, run:\n  {self.command}")

    def _claim(self) -> None:
        if self._lock is not None:
            return
        self._lock = claim(self.folder / ".lock")
        if self._lock is None:
            raise UserError(
                f"Another process is using {self.folder}. Wait for it to end, stop it, or use another output folder."
            )
        if self._working.exists():
            self.died_in = self._working.read_text(encoding="utf-8")
            remove(self._working)


def read_versions(file: Path) -> dict[str, str]:
    """The versions that `Run.start` wrote.

    Raises `UserError` for any other content.
    """
    return convert(parse_json(read_text(file), str(file)), dict[str, str], str(file))


def installed_versions() -> dict[str, str]:
    """Versions of Python, the platform and `PACKAGES`."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout that was never installed
            versions[package] = "not installed"
    return versions
