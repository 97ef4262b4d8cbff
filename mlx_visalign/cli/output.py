"""What a command found, for programs as JSON and for people as words."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mlx_visalign.utils.console import CODES, Terminal


@dataclass(frozen=True)
class Result:
    """What came out, for programs and for people."""

    data: Any
    shown: RenderableType
    well: bool = True  # or else the exit code is 2

    def show(self) -> None:
        Terminal(highlight=False, markup=False).print(self.shown, crop=False)


@dataclass(frozen=True)
class Answers:
    """A result that is shown while it is made: an answer to each image."""

    images: Sequence[str]
    pieces: Callable[[str], Iterator[str]]
    well = True

    @property
    def data(self) -> list[dict[str, str]]:
        return [{"image": image, "answer": "".join(self.pieces(image))} for image in self.images]

    def show(self) -> None:
        for image in self.images:
            print(f"{image}: ".translate(CODES) if len(self.images) > 1 else "", end="")
            for piece in self.pieces(image):
                print(piece.translate(CODES), end="", flush=True)
            print()


def told(figures: dict[str, Any], *more: str) -> Result:
    return Result(figures, Group(lines(figures), *map(plain, more)))


def planned(figures: dict[str, Any], config: str) -> Result:
    """What a dry run says: the figures, then the settings as a recipe."""
    from mlx_visalign.preflight.estimate import for_people

    return Result(figures, Group(lines(for_people(figures)), plain(config)))


def lines(figures: dict[str, Any]) -> Text:
    width = max([18, *map(len, figures)])
    return plain("\n".join(f"{name.replace('_', ' '):{width}} {_words(value)}" for name, value in figures.items()))


def plain(text: str) -> Text:
    """Text as it is, whatever the terminal's width: paths and commands can be copied."""
    return Text(text.translate(CODES), no_wrap=True, overflow="ignore")


def _words(value: Any) -> str:
    return ", ".join(f"{name} {number:g}" for name, number in value.items()) if isinstance(value, dict) else str(value)
