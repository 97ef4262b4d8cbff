"""Which objects a text names: a vocabulary of objects, each with the phrases that name it.

A vocabulary file is a JSON list of {"canonical": "dining table", "phrases": ["dining table", "table"]}. An entry whose
canonical is null lists compounds that name none of the objects ("toilet paper"). Plurals are understood and need not
be listed; a hyphen between words counts as a space.

`coco80` holds the 80 classes of COCO (Lin et al. 2014) with synonyms of our own, chosen so that what is found is
rarely wrong: a bare "orange", mostly a colour, and a bare "baseball", mostly the game, count for nothing.
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
    """An object and the phrases that name it; `canonical` None: phrases that name no object of the vocabulary."""

    canonical: str | None
    phrases: tuple[str, ...]

    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        found = ["canonical is empty; an object needs a name, or null for phrases that name none."] * (self.canonical == "")
        return found + ["phrases needs at least one phrase, and none that is empty."] * (
            not self.phrases or not all(map(str.strip, self.phrases))
        )


@dataclass(frozen=True)
class Mention:
    """An object named in a text, at characters start to end (end not included)."""

    canonical: str
    start: int
    end: int


@dataclass(frozen=True)
class Vocabulary:
    """Objects and their phrases. Where two entries share a phrase, the later one has it."""

    entries: tuple[Entry, ...]

    @classmethod
    def from_rows(cls, rows: object, where: str) -> "Vocabulary":
        """From the content of a vocabulary file. Raises UserError, beginning with `where`, if it is not one."""
        vocabulary = cls(convert(rows, tuple[Entry, ...], where))
        if not vocabulary.objects:
            raise UserError(f"{where}: a vocabulary must name at least one object.")
        refuse([f"{where}[{index}]: {fault}" for index, entry in enumerate(vocabulary.entries) for fault in entry.faults()])
        return vocabulary

    def extended(self, other: "Vocabulary") -> "Vocabulary":
        """With the other's objects and phrases as well."""
        return Vocabulary(self.entries + other.entries)

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """The canonical names, each once, in the order of the file."""
        return tuple(dict.fromkeys(entry.canonical for entry in self.entries if entry.canonical is not None))

    def mentions(self, text: str) -> list[Mention]:
        """Every naming of an object, in the order of the text. Of overlapping phrases the first counts, and of those
        that begin together the longest: a "hot dog" is no "dog".
        """
        found = [(self._canonicals[" ".join(_words(match[0]))], match) for match in self._pattern.finditer(text)]
        return [Mention(canonical, *match.span()) for canonical, match in found if canonical is not None]

    def sample(self, count: int, seed: int) -> list[str]:
        """`count` different objects, drawn uniformly; the same for the same seed."""
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
        # Python's alternation takes the first alternative that fits, so the longest come first.
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
    """The existence question, in the words of POPE (Li et al. 2023, arXiv 2305.10355)."""
    article = "an" if canonical[0].lower() in "aeiou" else "a"
    return f"Is there {article} {canonical} in the image?"


def plural(phrase: str) -> str:
    """The plural of a phrase by its last word: "wine glasses", "policemen", "knives", "ponies"."""
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
