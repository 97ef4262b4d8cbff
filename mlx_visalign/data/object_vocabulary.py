"""Vocabulary of objects, and their mentions in a text.

A vocabulary file is a JSON list of {"canonical": "dining table", "phrases": ["dining table", "table"]}. An entry whose
canonical is null lists compounds that name none of the objects ("toilet paper"). Plurals are recognised and need not be
listed; a hyphen between words counts as a space.

`coco80` holds the 80 classes of COCO (Lin et al. 2014) with our own synonyms, chosen for precision: a bare "orange",
mostly a colour, and a bare "baseball", mostly the game, are not counted.
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from mlx_visalign.utils.errors import UserError, refuse
from mlx_visalign.utils.files import parse_json, read_text
from mlx_visalign.utils.schema import convert

IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "goose": "geese",
    "human": "humans",
    "knife": "knives",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
}


@dataclass(frozen=True)
class Entry:
    """An object and its phrases.

    `canonical` None: the phrases name no object of the vocabulary.
    """

    canonical: str | None
    phrases: tuple[str, ...]

    def faults(self) -> list[str]:
        """Error texts; empty if the entry is valid."""
        found = ["canonical is empty; name the object, or use null for phrases that name none."] * (self.canonical == "")
        return found + ["phrases must list at least one phrase, and no empty one."] * (
            not self.phrases or not all(map(str.strip, self.phrases))
        )


@dataclass(frozen=True)
class Mention:
    """A mention of an object at characters [start, end)."""

    canonical: str
    start: int
    end: int


@dataclass(frozen=True)
class Vocabulary:
    """Objects and their phrases.

    If two entries share a phrase, the later one gets it.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def from_rows(cls, rows: object, where: str) -> "Vocabulary":
        """Parse the content of a vocabulary file.

        Raises UserError, beginning with `where`, if it is invalid.
        """
        vocabulary = cls(convert(rows, tuple[Entry, ...], where))
        if not vocabulary.objects:
            raise UserError(f"{where}: a vocabulary must name at least one object.")
        refuse([f"{where}[{index}]: {fault}" for index, entry in enumerate(vocabulary.entries) for fault in entry.faults()])
        return vocabulary

    def extended(self, other: "Vocabulary") -> "Vocabulary":
        """Vocabulary with the entries of both."""
        return Vocabulary(self.entries + other.entries)

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Distinct canonical names, in file order."""
        return tuple(dict.fromkeys(entry.canonical for entry in self.entries if entry.canonical is not None))

    def mentions(self, text: str) -> list[Mention]:
        """Mentions of objects, in text order.

        Of overlapping phrases the first counts, and of those with the same start the longest: a "hot dog" is no "dog".
        """
        found = [(self._canonicals[" ".join(_words(match[0]))], match) for match in self._pattern.finditer(text)]
        return [Mention(canonical, *match.span()) for canonical, match in found if canonical is not None]

    def sample(self, count: int, seed: int) -> list[str]:
        """`count` distinct objects, drawn uniformly by the seed."""
        if count > len(self.objects):
            raise UserError(f"Asked for {count} different objects from a vocabulary of {len(self.objects)}.")
        return random.Random(seed).sample(self.objects, count)

    @cached_property
    def _canonicals(self) -> dict[str, str | None]:
        return {
            " ".join(_words(form)): entry.canonical
            for entry in self.entries
            for phrase in entry.phrases
            for form in (phrase, plural(phrase))
        }

    @cached_property
    def _pattern(self) -> re.Pattern:
        # Alternation in `re` takes the first alternative that matches, so the longest come first.
        phrases = sorted(self._canonicals, key=len, reverse=True)
        anyone = "|".join(r"[\s-]+".join(map(re.escape, phrase.split())) for phrase in phrases)
        return re.compile(rf"(?<![\w-])(?:{anyone})(?![\w-])", re.IGNORECASE)


def coco80() -> Vocabulary:
    return Vocabulary.from_rows(json.loads(files("mlx_visalign.data").joinpath("coco80.json").read_text()), "coco80.json")


def find_vocabulary(file: str | None) -> Vocabulary:
    """COCO's 80 objects, extended by those in a file."""
    return coco80() if file is None else coco80().extended(read_vocabulary(Path(file)))


def read_vocabulary(path: Path) -> Vocabulary:
    return Vocabulary.from_rows(parse_json(read_text(path), str(path)), str(path))


def question(canonical: str) -> str:
    """POPE's existence question (Li et al. 2023, arXiv 2305.10355)."""
    article = "an" if canonical[0].lower() in "aeiou" else "a"
    return f"Is there {article} {canonical} in the image?"


def plural(phrase: str) -> str:
    """Plural of a phrase: "wine glasses", "policemen", "knives", "ponies"."""
    *first, last = phrase.split(" ")
    if last in IRREGULAR:
        changed = IRREGULAR[last]
    elif last.endswith("man"):
        changed = last.removesuffix("man") + "men"
    elif re.search("[^aeiou]y$", last):
        changed = last.removesuffix("y") + "ies"
    else:
        changed = last + ("es" if last.endswith(("s", "x", "z", "ch", "sh")) else "s")
    return " ".join([*first, changed])


def _words(phrase: str) -> list[str]:
    return re.split(r"[\s-]+", phrase.strip().lower())
