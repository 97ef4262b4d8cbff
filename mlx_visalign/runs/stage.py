"""A stage: items processed in batches into one resumable file.

NAME.settings.json   what the rows depend on, written first
NAME.partial.jsonl   while it runs: a line for each finished batch, {"items": count, "rows": [...]}, flushed and synced;
                     a kill loses the current batch, and an incomplete line is dropped
NAME.jsonl           the rows, one per line; the stage is complete if the file exists
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
    """A digest of a list of items.

    Items are records, rows or plain values, compared by their `repr`.
    """
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
        """Whether rows exist already.

        Raises `UserError` if they were made with other settings.
        """
        if not (self.whole.exists() or self.partial.exists()):
            return False
        if not self.settings_file.exists():
            raise UserError(
                f"{self.whole.parent} has rows of the stage {self.name} but no {self.settings_file.name}, so the settings "
                "they were made with are unknown. Move them away, or use another output folder."
            )
        require_same(self.settings(), settings, self.settings_file)
        return True

    def settings(self) -> dict[str, Any]:
        """The saved settings of the rows."""
        settings = parse_json(read_text(self.settings_file), str(self.settings_file))
        if not isinstance(settings, dict):
            raise UserError(
                f"{self.settings_file} must contain named settings, got {shown(settings)}. Restore it, or move it away."
            )
        return settings

    def adopt(self, other: "Stage", settings: dict[str, Any]) -> None:
        """Copy another run's finished rows, if made with these settings.

        Prints what was decided. Rows are copied unchanged: paths in them must not be relative to the run's folder.
        """
        if not (other.whole.exists() and other.settings_file.exists()):
            say(f"{self.name}: not reused, because {other.whole} does not exist")
            return
        difference = first_difference(other.settings(), settings)
        if difference is not None:
            say(f"{self.name}: not reused, because {why(difference)} in {other.whole}")
            return
        write_atomically(self.settings_file, read_text(other.settings_file))
        write_atomically(self.whole, read_text(other.whole))
        say(f"{self.name}: reused from {other.whole}")

    def complete(self, items: Sequence[Any], work: Work, settings: dict[str, Any], batch: int, title: str) -> None:
        """Process the batches that are not in the partial file."""
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
        """The batches in the partial file; an incomplete last line is truncated."""
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
            raise UserError(f"{self.name}: one of the rows {names} contains a number that is not finite.") from error
        with appending(self.partial) as file:
            file.write(f"{line}\n".encode())
            file.flush()
            sync(file.fileno())


def _tokens_per_second(rows: list[Row], seconds: float) -> str:
    tokens = sum(row["tokens"] for row in rows if "tokens" in row)
    return f"{tokens / seconds:.0f} tokens/s" if tokens else ""
