"""A stage is a file: a list of items goes through `work` in batches, and NAME.jsonl is there when all of it is done.

NAME.settings.json   what the rows depend on, written first
NAME.partial.jsonl   while it runs: a line for each finished batch, {"items": how many, "rows": [...]}, flushed and
                     synced; a kill costs the batch in hand, and the line it tore is dropped
NAME.jsonl           the rows, one a line; present means done
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_visalign.data.records import read_rows
from mlx_visalign.utils.console import progress, say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import appending, parse_json, read_text, remove, sync, write_atomically
from mlx_visalign.utils.provenance import first_difference, require_same, why
from mlx_visalign.utils.schema import shown

Row = dict[str, Any]
Work = Callable[[Any], list[Row]]


def fingerprint(items: Sequence[Any]) -> str:
    """Tells one list of items from another. Items are records, rows or plain values, known by their `repr`."""
    digest = hashlib.sha256("\n".join(map(repr, items)).encode("utf-8", "surrogatepass"))
    return f"{len(items)} of digest {digest.hexdigest()[:16]}"


class Stage:
    """The three files of the stage `name` in `folder`."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.whole = folder / f"{name}.jsonl"
        self.partial = folder / f"{name}.partial.jsonl"
        self.settings_file = folder / f"{name}.settings.json"

    def begun(self, settings: dict[str, Any]) -> bool:
        """Whether rows are there already. UserError if they were made with other settings than these."""
        if not (self.whole.exists() or self.partial.exists()):
            return False
        if not self.settings_file.exists():
            raise UserError(
                f"{self.whole.parent} holds rows of the stage {self.name} but no {self.settings_file.name}, so nobody "
                "can tell what they were made with. Move them away to have them made, or use another output folder."
            )
        require_same(self.settings(), settings, self.settings_file)
        return True

    def settings(self) -> dict[str, Any]:
        """The settings that the rows were made with."""
        settings = parse_json(read_text(self.settings_file), str(self.settings_file))
        if not isinstance(settings, dict):
            raise UserError(
                f"{self.settings_file} should hold named settings, got {shown(settings)}. Restore it, or move it away."
            )
        return settings

    def adopt(self, other: "Stage", settings: dict[str, Any]) -> None:
        """Copy another run's finished rows if they were made with these settings, and say which way it went.

        Rows are copied as they are: a path in them must not be relative to the run's folder.
        """
        if not (other.whole.exists() and other.settings_file.exists()):
            say(f"{self.name}: {other.whole} is not there to be reused")
            return
        difference = first_difference(other.settings(), settings)
        if difference is not None:
            say(f"{self.name}: made anew, because {why(difference)} for {other.whole}")
            return
        write_atomically(self.settings_file, read_text(other.settings_file))
        write_atomically(self.whole, read_text(other.whole))
        say(f"{self.name}: taken from {other.whole}")

    def complete(self, items: Sequence[Any], work: Work, settings: dict[str, Any], batch: int, title: str) -> None:
        """Do what is left to do, from the first batch on that is not in the partial file."""
        if not self.whole.exists():
            write_atomically(self.settings_file, json.dumps(settings, indent=1))
            rows = self._work_through(items, work, batch, title)
            write_atomically(self.whole, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        remove(self.partial)

    def rows(self) -> list[Row]:
        """The rows of the finished stage."""
        return [row for _, row in read_rows(self.whole)]

    def _work_through(self, items: Sequence[Any], work: Work, batch: int, title: str) -> list[Row]:
        entries = self._finished_batches()
        done = sum(entry["items"] for entry in entries)
        with progress(title, len(items), done=done, unit="item") as bar:
            for start in range(done, len(items), batch):
                started = time.perf_counter()
                chunk = items[start : start + batch]
                entries.append({"items": len(chunk), "rows": work(chunk)})
                self._append(entries[-1])
                bar.advance(len(chunk), _tokens_per_second(entries[-1]["rows"], time.perf_counter() - started))
        return [row for entry in entries for row in entry["rows"]]

    def _finished_batches(self) -> list[dict[str, Any]]:
        """The batches in the partial file; what a kill tore off at its end is cut away."""
        entries = []
        with appending(self.partial) as file:
            file.seek(0)
            whole_bytes = 0
            for line in file:
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    break
                whole = isinstance(entry, dict) and isinstance(entry.get("rows"), list)
                if not (whole and line.endswith(b"\n")):
                    break
                entries.append(entry)
                whole_bytes += len(line)
            file.truncate(whole_bytes)
        return entries

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            line = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            names = ", ".join(str(row.get("id", "one without an id")) for row in entry["rows"])
            raise UserError(f"{self.name}: a number is not finite in one of the rows {names}.") from error
        with appending(self.partial) as file:
            file.write(f"{line}\n".encode())
            file.flush()
            sync(file.fileno())


def _tokens_per_second(rows: list[Row], seconds: float) -> str:
    tokens = sum(row["tokens"] for row in rows if "tokens" in row)
    return f"{tokens / seconds:.0f} tokens/s" if tokens else ""
