"""Preference pairs from elsewhere: recognise a file's format and read it as `Pair` records.

The format is recognised by a row's columns, those that are null aside:
- TRL conversations (our own files) and TRL plain text: `prompt`, `chosen`, `rejected` and `images` or `image`; in
  conversations the prompt may stand in `chosen` and `rejected` alone (huggingface/trl docs/source/dataset_formats.md);
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

IMAGES = ("images", "image", "image_path", "image_id")  # the columns that name an image, the first one that does counts
OURS = ("method", "round", "chosen_score", "rejected_score", "label_smoothing", "seed")  # what our own files have besides
REFERENCES = ("reference_logps", "ref_chosen_logps", "ref_rejected_logps")
NOT_TRAINED = ("system", "history", "tools", "videos", "video", "audios", "audio")  # that no pair about an image has
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
    """A file format: its name and the columns of the question (none: it is the answers' first turn) and the two answers.

    `turns`: whether the answers' columns hold turns, in place of text.
    """

    name: str
    question: str | None
    chosen: str
    rejected: str
    turns: bool = False
    own: bool = False  # our own columns are read, too

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
    """A pair, and where it stands, for errors: "file:line"."""

    pair: Pair
    where: str


def read_pairs(
    path: Path, images: Path | None = None, skip_bad: bool = False, elsewhere: str | None = None
) -> tuple[list[Pair], str]:
    """The pairs in a file, and the name of the format it was recognised as.

    Image paths in the file are taken relative to the folder `images`, or to the file's own folder without it, must
    not lead out of it, and come back absolute. A link that leads out of that folder is refused, unless links are followed.
    A template's marks around questions and answers are taken off, and told. Reference log-probabilities are left aside, for
    they belong to the model that made the file. Every image is decoded here, so that none fails hours later. Raises
    UserError with file and row for all that cannot be used: rows that cannot be read or contradict themselves, images, ids
    that other rows have. With `skip_bad` such rows are left out, and told. `elsewhere` is where the images may be, for the
    advice where they are not.
    """
    placed, name = read_placed_pairs(path, images, skip_bad, elsewhere)
    return [one.pair for one in placed], name


def read_placed_pairs(
    path: Path, images: Path | None = None, skip_bad: bool = False, elsewhere: str | None = None
) -> tuple[list[PlacedPair], str]:
    """As `read_pairs`, each pair with its place in the file."""
    from mlx_visalign.data.images import image_finder  # only now, for it brings MLX along

    rows = read_data(path)
    if not rows:
        raise UserError(f"{path} holds no pairs.")
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
            raise UserError(f"{where}: the id {pair.id!r} is that of {places[pair.id]} too; give every pair its own.")
        references += any(name in kept for name in REFERENCES)
        return PlacedPair(pair, where)

    pairs = sift(enumerate(rows, 1), read, skip_bad, "pairs")
    taken_off.tell()
    if references:
        say(f"{counted(references, 'pair')} came with a reference's log-probabilities, which are computed anew for this model.")
    return pairs, found.name


def _format(rows: list[tuple[str, Any]]) -> Format:
    """That of the first row that has one."""
    for whole in (False, True):  # null columns too, only where nothing else tells the format
        for _, row in rows:
            if isinstance(row, dict) and (found := _recognised(row if whole else _filled(row))):
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
        f"{where}: the columns {', '.join(row)} are no known preference format.{_meant(row)} Read are: images, prompt, chosen, "
        "rejected (TRL); image, conversations, rejected_conversations (LLaVA, CSR, SIMA); images, conversations or messages, "
        "chosen, rejected (LlamaFactory); image_id, question, chosen, reject (SeVa); image or image_path, question, chosen, "
        "rejected (RLAIF-V)."
    )


def _meant(row: Row) -> str:
    """Columns that are nearly called as they should be."""
    near = {name: difflib.get_close_matches(name, COLUMNS - row.keys(), 1, 0.75) for name in row if name not in COLUMNS}
    return "".join(f" Instead of '{name}', did you mean '{other[0]}'?" for name, other in near.items() if other)


def _known(form: Format, row: Any, where: str) -> Row:
    """A row without its null columns. UserError unless it has those of the format."""
    kept = _filled(_object(row, where))
    if missing := [name for name in form.columns if name not in kept]:
        lacks = [f"{name} is {'null' if name in row else 'missing'}" for name in missing]
        raise UserError(f"{where}: {' and '.join(lacks)}; expected a row like the others ({form.name}).{_meant(kept)}")
    return kept


def _pair(form: Format, row: Row, name: str, find: Callable[[str, str], Path], where: str, taken_off: TakenOff) -> Pair:
    """The pair in a row. UserError, with all that is wrong, for one that is none, or that contradicts itself."""
    for column in NOT_TRAINED:
        if row.get(column):
            raise UserError(
                f"{where}: {column} is given; a pair is one question about one image with two answers. Take it out."
            )
    asked, chosen, rejected, pictures = _conversation(form, row, where)
    parts: list[Callable[[], str]] = [
        partial(_question, asked, where, taken_off),
        partial(_answer, chosen, f"{where}: {form.chosen}", taken_off),
        partial(_answer, rejected, f"{where}: {form.rejected}", taken_off),
        lambda: str(find(_image(row, asked, pictures, where), where)),
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


def _question(asked: dict[str, str], where: str, taken_off: TakenOff) -> str:
    """The one question of a row, from every column that has it. UserError where they differ."""
    (first, text), *others = asked.items()
    question = _without_images(taken_off.question(text, f"{where}: {first}"))
    for column, again in others:
        other = _without_images(question_in(again, f"{where}: {column}")[0])
        if other != question:
            raise UserError(
                f"{where}: {column} asks another question than {first} ({shown(other)}, not {shown(question)}); the two "
                "answers of a pair are to one question."
            )
    return question


def _without_images(text: str) -> str:
    return IMAGE_MARK.sub("", text).strip()


def _answer(text: str, where: str, taken_off: TakenOff) -> str:
    if IMAGE in text:
        raise UserError(f"{where}: an answer may not contain {IMAGE}, which stands for the image itself.")
    return taken_off.answer(text, where)


# -- turns ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What one side says. `word`: its role as the file has it. An image in it is a mark in `text`, and if named a picture."""

    role: str
    word: str
    text: str
    pictures: tuple[str, ...] = ()


def _conversation(form: Format, row: Row, where: str) -> tuple[dict[str, str], str, str, list[str]]:
    """The question by every column that has it, the two answers, and the images that the turns name."""
    turns = {column: _turns(row[column], column == form.question, f"{where}: {column}") for column in form.columns}
    if form.question is not None:
        [only] = _expected(turns[form.question], ["user"], f"{where}: {form.question}")
        more = row.get("input") if form.question == "instruction" else None
        asked = {form.question: f"{only.text}\n{convert(more, str, f'{where}: input')}" if more else only.text}
    else:
        asked = {}
    answers = []
    for column in (form.chosen, form.rejected):
        both = form.question is None or len(turns[column]) > 1  # the prompt may come again
        *before, answer = _expected(turns[column], ["user"] * both + ["assistant"], f"{where}: {column}")
        asked |= dict(zip([column], [turn.text for turn in before], strict=False))
        answers.append(answer.text)
    pictures = dict.fromkeys(picture for some in turns.values() for turn in some for picture in turn.pictures)
    return asked, answers[0], answers[1], list(pictures)


def _turns(value: Any, is_question: bool, where: str) -> list[Turn]:
    if isinstance(value, str):
        role = "user" if is_question else "assistant"
        return [Turn(role, role, convert(value, str, where))]
    if not isinstance(value, list | dict):
        raise UserError(f"{where} must be text or turns, got {_kind(value)}.")
    return [_turn(turn, where) for turn in (value if isinstance(value, list) else [value])]


def _turn(turn: Any, where: str) -> Turn:
    named = turn if isinstance(turn, dict) else {}
    word, content = named.get("role", named.get("from")), named.get("content", named.get("value"))
    if not isinstance(word, str) or not isinstance(content, str | list):
        raise UserError(f"{where} must hold turns, each of a role with its text, got {_kind(turn)}.")
    if word not in ROLES:
        raise UserError(f"{where} has a turn of the role {word!r}; expected one of {', '.join(ROLES)}.")
    parts = [_part(part, where) for part in content] if isinstance(content, list) else [(content, None)]
    text = convert("".join(text for text, _ in parts), str, where)
    return Turn(ROLES[word], word, text, tuple(picture for _, picture in parts if picture is not None))


def _part(part: Any, where: str) -> tuple[str, str | None]:
    """The text of a part, and the image it names; an image's text is a mark."""
    match part:
        case {"type": "text", "text": str(text)} | {"type": "text", "content": str(text)}:
            return text, None
        case {"type": "image" | "image_url"}:
            picture = next((part[name] for name in ("image", "path") if isinstance(part.get(name), str)), None)
            return IMAGE, picture
    raise UserError(f"{where} has a part that is neither text nor an image.")


def _expected(turns: list[Turn], roles: list[str], where: str) -> list[Turn]:
    """The turns, if they are of these roles. An empty system turn is none."""
    said = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    if any(turn.role == "system" for turn in said):
        raise UserError(f"{where} has a system turn, but the model's template has words of its own there. Take it out.")
    if [turn.role for turn in said] != roles:
        theirs = {turn.role: turn.word for turn in turns}
        llava = "gpt" in theirs.values() or "human" in theirs.values()
        words = [theirs.get(role, {"user": "human", "assistant": "gpt"}[role] if llava else role) for role in roles]
        got = ", ".join(f"'{turn.word}'" for turn in said) or "none"
        raise UserError(f"{where} must be one turn from {' and one from '.join(map(repr, words))}, got {got}.")
    return said


# -- images -----------------------------------------------------------------------------------------------------------


def _image(row: Row, asked: dict[str, str], pictures: list[str], where: str) -> str:
    """The name of a row's one image. UserError where there is none, or where numbers of images and of marks contradict."""
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
        raise UserError(f"{where}: {column} names {len(names)} images; pairs about one image are trained.")
    for question, text in asked.items():
        if (marks := len(IMAGE_MARK.findall(text))) > 1:
            raise UserError(f"{where}: {question} has {marks} marks for an image ({IMAGE}), but {column} names one image.")
    return names[0]


def _names(value: Any, where: str) -> list[str]:
    """The images that a column names: by a text, an object with a path, or a list of those."""
    if isinstance(value, list):
        return [name for index, item in enumerate(value) for name in _names(item, f"{where}[{index}]")]
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            return [value["path"]]
        if "bytes" in value or "url" in value:
            what = "the image itself" if "bytes" in value else "an address"
            raise UserError(f"{where} holds {what}, not the name of a file. Save the image as a file and name it there.")
    if not isinstance(value, str):
        raise UserError(f"{where} must be the name of an image file, got {_kind(value)}.")
    if value.startswith(("http://", "https://", "data:")):
        raise UserError(
            f"{where} is {'an address' if value.startswith('http') else 'the image itself'}, not a file. Save it as one."
        )
    return [convert(value, str, where)]


def _kind(value: Any) -> str:
    """What a JSON value is, as people write it."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return shown(value) if isinstance(value, str) else json.dumps(value)
