"""Records passed between stages, as JSON lines.

Plain Python: reading them needs no MLX.

Pair rows carry the columns of TRL's conversational vision preferences (`images`, `prompt`, `chosen`, `rejected`; see
huggingface/trl docs/source/dataset_formats.md), so that `datasets` and TRL can read our files; our extra columns are
flat fields beside them. An image is given by its path, absolute or relative to the folder of the JSON lines file.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlx_visalign.utils.errors import UserError, collect
from mlx_visalign.utils.files import parse_json, read_text, write_atomically
from mlx_visalign.utils.schema import build, convert, shown

Kind = Literal["describe", "exists", ""]

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """Base class: conversion to and from JSON rows."""

    def to_row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls: type[R], row: object, where: str = "row") -> R:
        """Record from a JSON row; unknown columns are ignored.

        Raises UserError naming a bad field.
        """
        return build(cls, _known_columns(cls, row, where), where)


@dataclass(frozen=True)
class Prompt(Record):
    """A question about an image.

    `kind` is "describe", "exists" or "" (any other); methods may treat them differently.
    """

    id: str
    image: str
    prompt: str
    kind: Kind = ""


@dataclass(frozen=True)
class Response(Record):
    """A model's answer to a prompt.

    `view` is what the model saw: "clean", or an augmentation's label such as "diffusion-500". `finished` is whether
    the model ended the answer itself (EOS) or was cut off; `tokens` counts the answer's tokens, EOS included.
    `reference_logp` is its summed log-probability in nats, given the clean image, under the policy that will be the
    reference.
    """

    id: str
    image: str
    prompt: str
    kind: Kind
    view: str
    text: str
    finished: bool
    tokens: int
    reference_logp: float | None = None


@dataclass(frozen=True)
class Pair(Record):
    """Two answers to one question, the first preferred.

    `chosen_score` and `rejected_score` are the scorer's values, if a scorer chose. `label_smoothing` in [0, 0.5) is the
    probability that the preference is wrong. `ended` false: both are the beginnings of answers, so that no end token belongs
    to them; a beginning that they share drops out of their difference. `reference_logps` are the reference's summed
    log-probabilities by name, in nats: of the `chosen` and the `rejected` answer, and any others a loss needs. Old
    files have a list of the first two.
    """

    id: str
    images: tuple[str, ...]
    prompt: str
    chosen: str
    rejected: str
    method: str = ""
    round: int = 1
    chosen_score: float | None = None
    rejected_score: float | None = None
    label_smoothing: float = 0.0
    seed: int | None = None
    reference_logps: dict[str, float] | None = None
    ended: bool = True

    def to_row(self) -> dict[str, Any]:
        # A turn's content is plain text: TRL puts the image before it, and all rows have the same columns and types.
        turns = {
            "prompt": [{"role": "user", "content": self.prompt}],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }
        return {**dataclasses.asdict(self), "images": list(self.images), **turns}

    @classmethod
    def from_row(cls, row: object, where: str = "row") -> "Pair":
        values = _known_columns(cls, row, where)
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            if name in values:
                values[name] = turn_text(values[name], role, f"{where}: {name}")
        if isinstance(values.get("reference_logps"), list | tuple):
            two = convert(values["reference_logps"], tuple[float, float], f"{where}: reference_logps")
            values["reference_logps"] = dict(zip(("chosen", "rejected"), two, strict=True))
        pair = build(cls, values, where)
        if not 0 <= pair.label_smoothing < 0.5:
            raise UserError(f"{where}: label_smoothing must be at least 0 and below 0.5, got {pair.label_smoothing}.")
        return pair


def turn_text(turns: object, role: str, where: str) -> str:
    """Text of a one-turn conversation.

    Its content is text or a list of image and text parts (TRL's two forms).
    """
    match turns:
        case [{"role": found, "content": str(text)}] if found == role:
            return text
        case [{"role": found, "content": [*parts]}] if found == role:
            return "".join(_part_text(part, where) for part in parts)
    raise UserError(f"{where} must be one turn of the role '{role}' with its text, got {shown(turns)}.")


def read_jsonl(path: Path, cls: type[R]) -> list[R]:
    """Records of a JSON lines file.

    Raises UserError with file and line of all bad rows.
    """
    return collect(partial(cls.from_row, row, where) for where, row in read_rows(path))


def read_rows(path: Path) -> list[tuple[str, Any]]:
    """JSON values of a JSON lines file with their places.

    A place is "file:line", for errors. Empty lines are skipped. UserError lists the lines that are not JSON.
    """
    lines = [(f"{path}:{number}", text) for number, text in enumerate(read_text(path).split("\n"), start=1) if text.strip()]
    return collect(partial(_placed, *line) for line in lines)


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, atomically."""
    lines = [json.dumps(record.to_row(), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    write_atomically(path, "".join(lines))


def _placed(where: str, text: str) -> tuple[str, Any]:
    return where, parse_json(text, where)


def _known_columns(cls: type, row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {shown(row)}.")
    return {field.name: row[field.name] for field in dataclasses.fields(cls) if field.name in row}


def _part_text(part: object, where: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image"}:
            return ""
    raise UserError(f"{where} has a part that is neither text nor an image: {shown(part)}.")
