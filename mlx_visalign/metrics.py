"""The rows a training writes, one for each update, and what they warn of in plain words while it is still early."""

import json
from pathlib import Path
from typing import Any

from mlx_visalign.errors import UserError
from mlx_visalign.files import write_atomically

Row = dict[str, Any]


def read_metrics(path: Path) -> list[Row]:
    """Every whole row of a metrics file; none if there is no file. A line torn by a kill ends it."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def cut_back(path: Path, iteration: int) -> None:
    """Drop the rows after `iteration`: those updates are about to be made again."""
    rows = [row for row in read_metrics(path) if row["iteration"] <= iteration]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: Row) -> None:
    """Add one row and hand it to the system, so that a kill of this process cannot take it back."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error}. Make room on the disk and run the same command again; "
            "it goes on from the last checkpoint."
        ) from error
