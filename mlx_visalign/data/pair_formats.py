"""Reads preference pairs in common formats as `Pair` records.

The format is recognised by a row's columns that are not null:
- TRL conversations (our own files) and TRL plain text: `prompt`, `chosen`, `rejected` and `images` or `image`; in
  conversations the prompt may be in `chosen` and `rejected` only (huggingface/trl docs/source/dataset_formats.md);
- LLaVA turns, as CSR, SIMA and POVID write them: `image`, `conversations`, `rejected_conversations`
  (YiyangZhou/CSR, umd-huang-lab/SIMA);
- LlamaFactory: `conversations` or `messages`, or `instruction` and `input`; `chosen`, `rejected` and `images`
  (hiyouga/LLaMA-Factory, data/README.md);
- SeVa: `image_id`, `question`, `chosen`, `reject` (Kevinz-code/SeVa, data/step3);
- RLAIF-V: `image` or `image_path`, `question`, `chosen`, `rejected` (openbmb/RLAIF-V-Dataset).
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.data.records import Pair
from mlx_visalign.data.row_formats import read_data
from mlx_visalign.data.template_marks import IMAGE_MARK, TakenOff, question_in
from mlx_visalign.utils.console import say, sift
from mlx_visalign.utils.errors import UserError, collect, refuse
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.schema import convert, shown

Row = dict[str, Any]
IMAGE = "<image>"

IMAGES = ("images", "image", "image_path", "image_id")  # columns that may name the image; the first one present is used
OURS = ("method", "round", "chosen_score", "rejected_score", "label_smoothing", "seed")  # extra columns of our own files
REFERENCES = ("reference_logps", "ref_chosen_logps", "ref_rejected_logps")
NOT_TRAINED = ("system", "history", "tools", "videos", "video", "audios", "audio")  # not supported in pairs about one image
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Format:
    """A file format: its name and its columns.

    question  column of the question; None: it is the first turn of the answers' columns
    turns     the answers' columns contain turns instead of text
    own       our own files, whose extra columns (`OURS`) are read too
    """

    name: str
    question: str | None
    chosen: str
    rejected: str
    turns: bool = False
    own: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.question, self.chosen, self.rejected)))

    def recognises(self, row: Row) -> bool:
        fits = not self.turns or all(isinstance(row.get(name), list) for name in (self.chosen, self.rejected))
        return fits and row.keys() >= set(self.columns)


FORMATS = (
    Format("TRL conversations", "prompt", "chosen", "rejected", turns=True, own=True),
    Format("TRL plain text", "prompt", "chosen", "rejected"),
    Format("LLaVA turns", None, "conversations", "rejected_conversations"),
    Format("LlamaFactory turns", "conversations", "chosen", "rejected"),
    Format("LlamaFactory messages", "messages", "chosen", "rejected"),
    Format("LlamaFactory instructions", "instruction", "chosen", "rejected"),
    Format("SeVa", "question", "chosen", "reject"),
    Format("RLAIF-V", "question", "chosen", "rejected"),
    Format("TRL conversations with the prompt in them", None, "chosen", "rejected", turns=True),
)
COLUMNS = {*IMAGES, *(name for form in FORMATS for name in form.columns)}


@dataclass(frozen=True)
class PlacedPair:
    """A pair and its place ("file:line") for errors."""

    pair: Pair
    where: str


def read_pairs(
    path: Path, images: Path | None = None, skip_bad: bool = False, elsewhere: str | None = None
) -> tuple[list[Pair], str]:
    """Pairs in a file, and the name of its format.

    Image paths in the file are relative to the folder `images` (default: the file's own folder), must not lead out of it,
    and are returned as absolute paths. A link that leads out of that folder is refused, unless links are followed.
    Chat template markers around questions and answers are removed, with a message. Reference log-probabilities are
    ignored, since they belong to the model that made the file. Every image is decoded, so that none fails hours later.
    Raises UserError with file and row for all invalid rows: unreadable or contradictory ones, bad images, duplicate ids.
    With `skip_bad` they are skipped, with a message. `elsewhere` is a folder to suggest if the images are not found.
    """
    placed, name = read_placed_pairs(path, images, skip_bad, elsewhere)
    return [one.pair for one in placed], name


def read_placed_pairs(
    path: Path, images: Path | None = None, skip_bad: bool = False, elsewhere: str | None = None
) -> tuple[list[PlacedPair], str]:
    """`read_pairs`, with each pair's place in the file."""
    from mlx_visalign.data.images import image_finder  # here, since it imports MLX

    rows = read_data(path)
    if not rows:
        raise UserError(f"{path} contains no pairs.")
    found = _format(rows)
    find = image_finder(images or path.parent, elsewhere)
    places: dict[str, str] = {}
    taken_off, references = TakenOff(), 0

    def read(numbered: tuple[int, tuple[str, Any]]) -> PlacedPair:
        nonlocal references
        number, (where, row) = numbered
        kept = _known(found, row, where)
        pair = _pair(found, kept, f"{path.stem}-{number}", find, where, taken_off)
        if places.setdefault(pair.id, where) != where:
            raise UserError(f"{where}: the id {pair.id!r} is also used at {places[pair.id]}; give every pair its own.")
        references += any(name in kept for name in REFERENCES)
        return PlacedPair(pair, where)

    pairs = sift(enumerate(rows, 1), read, skip_bad, "pairs")
    taken_off.report()
    if references:
        say(f"{counted(references, 'pair')} came with reference log-probabilities, which are recomputed for this model.")
    return pairs, found.name


def _format(rows: list[tuple[str, Any]]) -> Format:
    """The format of the first row that is recognised."""
    for with_nulls in (False, True):  # null columns count only if no row is recognised without them
        for _, row in rows:
            if isinstance(row, dict) and (found := _recognised(row if with_nulls else _filled(row))):
                return found
    where, row = rows[0]
    raise _unknown(_object(row, where), where)


def _recognised(row: Row) -> Format | None:
    return next((form for form in FORMATS if form.recognises(row)), None)


def _filled(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _object(row: Any, where: str) -> Row:
    if isinstance(row, UserError):
        raise row
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {_kind(row)}.")
    return row


def _unknown(row: Row, where: str) -> UserError:
    return UserError(
        f"{where}: the columns {', '.join(row)} match no known preference format.{_meant(row)} Known are: images, prompt, "
        "chosen, rejected (TRL); image, conversations, rejected_conversations (LLaVA, CSR, SIMA); images, conversations or "
        "messages, chosen, rejected (LlamaFactory); image_id, question, chosen, reject (SeVa); image or image_path, "
        "question, chosen, rejected (RLAIF-V)."
    )


def _meant(row: Row) -> str:
    """Hints for misspelt columns."""
    near = {name: difflib.get_close_matches(name, COLUMNS - row.keys(), 1, 0.75) for name in row if name not in COLUMNS}
    return "".join(f" Instead of '{name}', did you mean '{other[0]}'?" for name, other in near.items() if other)


def _known(form: Format, row: Any, where: str) -> Row:
    """The row without null columns; UserError if one of the format's columns is missing."""
    kept = _filled(_object(row, where))
    if missing := [name for name in form.columns if name not in kept]:
        lacks = [f"{name} is {'null' if name in row else 'missing'}" for name in missing]
        raise UserError(f"{where}: {' and '.join(lacks)}; expected a row like the others ({form.name}).{_meant(kept)}")
    return kept


def _pair(form: Format, row: Row, name: str, find: Callable[[str, str], Path], where: str, taken_off: TakenOff) -> Pair:
    """The pair in a row; UserError with all its faults."""
    for column in NOT_TRAINED:
        if row.get(column):
            raise UserError(
                f"{where}: {column} is set, but a pair is one question about one image with two answers. Remove it."
            )
    questions, chosen, rejected, pictures = _conversation(form, row, where)
    parts: list[Callable[[], str]] = [
        partial(_question, questions, where, taken_off),
        partial(_answer, chosen, f"{where}: {form.chosen}", taken_off),
        partial(_answer, rejected, f"{where}: {form.rejected}", taken_off),
        lambda: str(find(_image(row, questions, pictures, where), where)),
    ]
    question, chosen, rejected, image = collect(parts)
    extras = {column: row[column] for column in OURS if column in row} if form.own else {}
    values = {
        **extras,
        "id": row["id"] if form.own and isinstance(row.get("id"), str) else name,
        "images": [image],
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    return Pair.from_row(values, where)


def _question(questions: dict[str, str], where: str, taken_off: TakenOff) -> str:
    """The question of a row; UserError if the columns that contain it differ."""
    (first, text), *others = questions.items()
    question = _without_images(taken_off.question(text, f"{where}: {first}"))
    for column, again in others:
        other = _without_images(question_in(again, f"{where}: {column}")[0])
        if other != question:
            raise UserError(
                f"{where}: {column} asks a different question from {first} ({shown(other)}, not {shown(question)}); both "
                "answers of a pair must be to the same question."
            )
    return question


def _without_images(text: str) -> str:
    return IMAGE_MARK.sub("", text).strip()


def _answer(text: str, where: str, taken_off: TakenOff) -> str:
    if IMAGE in text:
        raise UserError(f"{where}: an answer may not contain {IMAGE}, the image placeholder.")
    return taken_off.answer(text, where)


# -- turns ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    role      user, assistant or system
    label     the role as the file calls it
    text      with a placeholder for an image
    pictures  names of images given in the turn itself
    """

    role: str
    label: str
    text: str
    pictures: tuple[str, ...] = ()


def _conversation(form: Format, row: Row, where: str) -> tuple[dict[str, str], str, str, list[str]]:
    """The question in every column that contains it, both answers, and the images that the turns name."""
    turns = {column: _turns(row[column], column == form.question, f"{where}: {column}") for column in form.columns}
    if form.question is not None:
        [only] = _expected(turns[form.question], ["user"], f"{where}: {form.question}")
        more = row.get("input") if form.question == "instruction" else None
        questions = {form.question: f"{only.text}\n{convert(more, str, f'{where}: input')}" if more else only.text}
    else:
        questions = {}
    answers = []
    for column in (form.chosen, form.rejected):
        both = form.question is None or len(turns[column]) > 1  # the prompt may be repeated
        *before, answer = _expected(turns[column], ["user"] * both + ["assistant"], f"{where}: {column}")
        questions |= dict(zip([column], [turn.text for turn in before], strict=False))
        answers.append(answer.text)
    pictures = dict.fromkeys(picture for some in turns.values() for turn in some for picture in turn.pictures)
    return questions, answers[0], answers[1], list(pictures)


def _turns(value: Any, is_question: bool, where: str) -> list[Turn]:
    if isinstance(value, str):
        role = "user" if is_question else "assistant"
        return [Turn(role, role, convert(value, str, where))]
    if not isinstance(value, list | dict):
        raise UserError(f"{where} must be text or turns, got {_kind(value)}.")
    return [_turn(turn, where) for turn in (value if isinstance(value, list) else [value])]


def _turn(turn: Any, where: str) -> Turn:
    named = turn if isinstance(turn, dict) else {}
    label, content = named.get("role", named.get("from")), named.get("content", named.get("value"))
    if not isinstance(label, str) or not isinstance(content, str | list):
        raise UserError(f"{where} must be turns, each with a role and a text, got {_kind(turn)}.")
    if label not in ROLES:
        raise UserError(f"{where} has a turn with the role {label!r}; expected one of {', '.join(ROLES)}.")
    parts = [_part(part, where) for part in content] if isinstance(content, list) else [(content, None)]
    text = convert("".join(text for text, _ in parts), str, where)
    return Turn(ROLES[label], label, text, tuple(picture for _, picture in parts if picture is not None))


def _part(part: Any, where: str) -> tuple[str, str | None]:
    """A part's text (the placeholder for an image), and the name of its image if given."""
    match part:
        case {"type": "text", "text": str(text)} | {"type": "text", "content": str(text)}:
            return text, None
        case {"type": "image" | "image_url"}:
            picture = next((part[name] for name in ("image", "path") if isinstance(part.get(name), str)), None)
            return IMAGE, picture
    raise UserError(f"{where} has a part that is neither text nor an image.")


def _expected(turns: list[Turn], roles: list[str], where: str) -> list[Turn]:
    """The turns; UserError unless they have these roles. An empty system turn is ignored."""
    said = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    if any(turn.role == "system" for turn in said):
        raise UserError(f"{where} has a system turn, but the model's template has its own. Remove it.")
    if [turn.role for turn in said] != roles:
        theirs = {turn.role: turn.label for turn in turns}
        llava = "gpt" in theirs.values() or "human" in theirs.values()
        labels = [theirs.get(role, {"user": "human", "assistant": "gpt"}[role] if llava else role) for role in roles]
        got = ", ".join(f"'{turn.label}'" for turn in said) or "none"
        raise UserError(f"{where} must be one turn from {' and one from '.join(map(repr, labels))}, got {got}.")
    return said


# -- images -----------------------------------------------------------------------------------------------------------


def _image(row: Row, questions: dict[str, str], pictures: list[str], where: str) -> str:
    """The name of a row's image; UserError unless there is exactly one image and at most one placeholder."""
    given: dict[str, list[str]] = {}
    faults: list[str] = []
    for column in filter(row.__contains__, IMAGES):
        try:
            given[column] = _names(row[column], f"{where}: {column}")
        except UserError as error:
            faults += error.each
    empty = [column for column, names in given.items() if not names]
    given = {column: names for column, names in given.items() if names}
    if not given and pictures:
        given = {"the turns": pictures}
    if not given:
        refuse(faults)
        lacking = f" ({' and '.join(empty)} is empty)" if empty else ""
        raise UserError(f"{where}: no image in this row{lacking}; pairs need one, in a column such as images or image.")
    column, names = next(iter(given.items()))
    if (
        column == "images"
        and "image" in given
        and {Path(name).name for name in names + given["image"]} != {Path(names[0]).name}
    ):
        raise UserError(
            f"{where}: images and image name different images, {names[0]} and {given['image'][0]}. Keep one of them."
        )
    if len(names) > 1:
        raise UserError(f"{where}: {column} names {len(names)} images; a pair must be about one image.")
    for question, text in questions.items():
        if (marks := len(IMAGE_MARK.findall(text))) > 1:
            raise UserError(f"{where}: {question} has {marks} image placeholders ({IMAGE}), but {column} names one image.")
    return names[0]


def _names(value: Any, where: str) -> list[str]:
    """Image names in a column: text, an object with a path, or a list of these."""
    if isinstance(value, list):
        return [name for index, item in enumerate(value) for name in _names(item, f"{where}[{index}]")]
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            return [value["path"]]
        if "bytes" in value or "url" in value:
            what = "image data" if "bytes" in value else "a URL"
            raise UserError(f"{where} holds {what}, not a file name. Save the image as a file and give its name.")
    if not isinstance(value, str):
        raise UserError(f"{where} must be the name of an image file, got {_kind(value)}.")
    if value.startswith(("http://", "https://", "data:")):
        raise UserError(
            f"{where} is {'a URL' if value.startswith('http') else 'image data'}, not a file name. Save the image as a file "
            "and give its name."
        )
    return [convert(value, str, where)]


def _kind(value: Any) -> str:
    """Short form of a JSON value for errors."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return shown(value) if isinstance(value, str) else json.dumps(value)
