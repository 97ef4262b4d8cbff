"""Preference pairs from elsewhere: recognise a file's format and read it as `Pair` records.

A file is a JSON list or JSON lines, its format recognised by the columns of its first row:
- TRL conversations (our own files) and TRL plain text: `prompt`, `chosen`, `rejected` and `images` or `image`
  (huggingface/trl docs/source/dataset_formats.md);
- LLaVA turns, as CSR, SIMA and POVID write them: `image`, `conversations`, `rejected_conversations`
  (YiyangZhou/CSR, umd-huang-lab/SIMA);
- SeVa: `image_id`, `question`, `chosen`, `reject` (Kevinz-code/SeVa, data/step3);
- RLAIF-V: `image` or `image_path`, `question`, `chosen`, `rejected` (openbmb/RLAIF-V-Dataset).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_visalign.errors import UserError
from mlx_visalign.fields import build, shown
from mlx_visalign.progress import sift
from mlx_visalign.records import Pair, parse_json, read_rows, read_text

Row = dict[str, Any]

# CSR's released code stores the whole templated prompt as the human's words; templating it again would put a second
# "ASSISTANT:" among the answer's tokens.
TEMPLATED = re.compile(r".*?\bUSER:(.*)\bASSISTANT:\s*", re.DOTALL)


@dataclass(frozen=True)
class Format:
    """A file format: its name, what a row of it looks like, and how (row, id, where) becomes a pair."""

    name: str
    recognises: Callable[[Row], bool]
    pair: Callable[[Row, str, str], Pair]


def read_pairs(
    path: Path, images: Path | None = None, skip_bad: bool = False, elsewhere: str | None = None
) -> tuple[list[Pair], str]:
    """The pairs in a file, and the name of the format it was recognised as.

    Image paths in the file are taken relative to the folder `images`, or to the file's own folder without it, must
    not lead out of it, and come back absolute. A link that leads out of that folder is refused, unless links are followed.
    Reference log-probabilities are left aside, for they belong to the model that made the file. Every image is decoded
    here, so that none fails hours later. Raises UserError with file and row for anything that cannot be used: a row that
    cannot be read, an image, an id that another row has. With `skip_bad` such rows are left out, and counted. `elsewhere` is
    where the images may be, for the advice where they are not.
    """
    from mlx_visalign.images import image_finder  # only now, for it brings MLX along

    rows = _rows(path, skip_bad)
    if not rows:
        raise UserError(f"{path} holds no pairs.")
    found = _format(rows, skip_bad)
    find = image_finder(images or path.parent, elsewhere)
    places: dict[str, str] = {}

    def read(numbered: tuple[int, tuple[str, Any]]) -> Pair:
        number, (where, row) = numbered
        pair = _pair(found, row, f"{path.stem}-{number}", find, where)
        if places.setdefault(pair.id, where) != where:
            raise UserError(f"{where}: the id {pair.id!r} is that of {places[pair.id]} too; give every pair its own.")
        return pair

    return sift(enumerate(rows, 1), read, skip_bad, "pairs"), found.name


def _rows(path: Path, skip_bad: bool) -> list[tuple[str, Any]]:
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return read_rows(path, skip_bad)
    return [(f"{path}: row {number}", row) for number, row in enumerate(parse_json(text, str(path)), 1)]


def _format(rows: list[tuple[str, Any]], skip_bad: bool) -> Format:
    """That of the first row; with `skip_bad` of the first that has one."""
    known = (row for row in rows if skip_bad and isinstance(row[1], dict) and any(f.recognises(row[1]) for f in FORMATS))
    return _recognise(*next(known, rows[0]))


def _recognise(where: str, row: object) -> Format:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {shown(row)}.")
    for candidate in FORMATS:
        if candidate.recognises(row):
            return candidate
    raise UserError(
        f"{where}: the columns {', '.join(row)} are no known preference format. Read are: images, prompt, chosen, "
        "rejected (TRL); image, conversations, rejected_conversations (LLaVA, CSR, SIMA); image_id, question, chosen, "
        "reject (SeVa); image or image_path, question, chosen, rejected (RLAIF-V)."
    )


def _pair(found: Format, row: Any, name: str, find: Callable[[str, str], Path], where: str) -> Pair:
    if not isinstance(row, dict) or not found.recognises(row):
        raise UserError(f"{where}: expected a row like the first one ({found.name}), got {shown(row)}.")
    pair = found.pair(row, name, where)
    if len(pair.images) != 1:
        raise UserError(f"{where}: the pair has {len(pair.images) or 'no'} images; pairs about one image are trained.")
    if any("<image>" in answer for answer in (pair.chosen, pair.rejected)):
        raise UserError(f"{where}: an answer may not contain <image>, which stands for the image itself.")
    return replace(
        pair,
        images=tuple(str(find(image, where)) for image in pair.images),
        prompt=_question(pair.prompt),
        chosen=_answer(pair.chosen),
        rejected=_answer(pair.rejected),
    )


def _question(text: str) -> str:
    templated = TEMPLATED.fullmatch(text)
    return (templated[1] if templated else text).replace("<image>", "").strip()


def _answer(text: str) -> str:
    return text.strip().removesuffix("</s>").strip()


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(column in row for column in columns)


def _is_conversational(row: Row) -> bool:
    return _has("prompt", "chosen", "rejected")(row) and isinstance(row["prompt"], list)


def _texts(name: str, image: object, prompt: object, chosen: object, rejected: object, where: str) -> Pair:
    values = {"id": name, "images": image, "prompt": prompt, "chosen": chosen, "rejected": rejected}
    return build(Pair, values, where)


def _trl_images(row: Row) -> object:
    return row["images"] if "images" in row else [row.get("image")]


def _trl_conversations(row: Row, name: str, where: str) -> Pair:
    own_name = row["id"] if isinstance(row.get("id"), str) else name
    return Pair.from_row({**row, "id": own_name, "images": _trl_images(row), "reference_logps": None}, where)


def _trl_texts(row: Row, name: str, where: str) -> Pair:
    return _texts(name, _trl_images(row), row["prompt"], row["chosen"], row["rejected"], where)


def _llava(row: Row, name: str, where: str) -> Pair:
    question, chosen = _two_turns(row["conversations"], f"{where}: conversations")
    _, rejected = _two_turns(row["rejected_conversations"], f"{where}: rejected_conversations")
    return _texts(name, [row["image"]], question, chosen, rejected, where)


def _two_turns(turns: object, where: str) -> tuple[object, object]:
    match turns:
        case [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]:
            return question, answer
    raise UserError(f"{where} must be one turn from 'human' and one from 'gpt', got {shown(turns)}.")


def _seva(row: Row, name: str, where: str) -> Pair:
    return _texts(name, [row["image_id"]], row["question"], row["chosen"], row["reject"], where)


def _rlaif_v(row: Row, name: str, where: str) -> Pair:
    # In the published dataset `image` is the picture itself and `image_path` its name.
    image = row["image"] if isinstance(row.get("image"), str) else row.get("image_path")
    return _texts(name, [image], row["question"], row["chosen"], row["rejected"], where)


FORMATS = (
    Format("TRL conversations", _is_conversational, _trl_conversations),
    Format("TRL plain text", _has("prompt", "chosen", "rejected"), _trl_texts),
    Format("LLaVA turns", _has("image", "conversations", "rejected_conversations"), _llava),
    Format("SeVa", _has("image_id", "question", "chosen", "reject"), _seva),
    Format("RLAIF-V", _has("question", "chosen", "rejected"), _rlaif_v),
)
