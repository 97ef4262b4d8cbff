"""Reads rows of JSON data files, whatever their extension.

JSON lines, a JSON list, an object with one list ({"data": [...]}), or objects spread over several lines; UTF-8 with or
without a byte order mark, or UTF-16.
"""

import json
import re
from pathlib import Path
from typing import Any

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import parse_json, read_text

WRAPPERS = ("data", "train", "rows", "instances", "examples", "samples", "items", "pairs", "prompts")
SPACE = re.compile(r"\s*")
Row = tuple[str, Any]
"""A row's place, for errors, and its value: any JSON value, or the UserError if it is not JSON."""


def read_data(path: Path) -> list[Row]:
    """Rows of a file with their places.

    A place is "file:line", or "file: row n" in a list. Empty lines are skipped. A line that is not JSON becomes a row whose
    value is the error, so that the caller can report all errors at once or skip them. UserError if the whole file is
    invalid.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return _listed(parse_json(text, str(path)), path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = _in_lines(lines, path)
    if rows and isinstance(rows[0][1], UserError):
        over_lines = _over_lines(text, path)
        # A broken line among complete ones is one broken row.
        if isinstance(over_lines, UserError) and not any(isinstance(value, dict) for _, value in rows):
            raise over_lines
        rows = rows if isinstance(over_lines, UserError) else over_lines
    if len(rows) == 1 and (wrapped := _wrapped(rows[0][1], path)) is not None:
        return _listed(wrapped, path)
    return rows


def _listed(values: list[Any], path: Path) -> list[Row]:
    return [(f"{path}: row {number}", value) for number, value in enumerate(values, 1)]


def _in_lines(lines: list[tuple[int, str]], path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            rows.append((where, parse_json(line, where)))
        except UserError as error:
            rows.append((where, error))
    return rows


def _over_lines(text: str, path: Path) -> list[Row] | UserError:
    """JSON values that may span lines, or the error of the first broken one."""
    decoder, rows, line = json.JSONDecoder(), list[Row](), 1
    at = end = 0
    while (at := SPACE.match(text, end).end()) < len(text):  # type: ignore[union-attr]
        line += text.count("\n", end, at)
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            return UserError(f"{path}:{line}: not valid JSON ({error}).")
        rows.append((f"{path}:{line}", value))
        line += text.count("\n", at, end)
    return rows


def _wrapped(value: Any, path: Path) -> list[Any] | None:
    """The rows in an object that is a wrapper around one list of objects, else None."""
    if not isinstance(value, dict):
        return None
    lists = {name: part for name, part in value.items() if _is_rows(part)}
    if len(value) > 1 and lists and lists.keys() <= {*WRAPPERS, "test", "validation", "valid", "dev"}:
        if len(lists) > 1:
            raise UserError(f"{path} holds several lists: {', '.join(lists)}. Save the one you mean as a separate file.")
        return next(iter(lists.values()))
    return next(iter(lists.values()), None) if len(value) == 1 else None


def _is_rows(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(row, dict) for row in part)
