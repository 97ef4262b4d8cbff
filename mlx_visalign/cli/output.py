"""Results of commands, as JSON and as text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mlx_visalign.utils.console import CODES, Terminal


@dataclass(frozen=True)
class Result:
    """A command's result: `data` for --json, `shown` for people."""

    data: Any
    shown: RenderableType
    ok: bool = True  # False: the exit code is 2

    @classmethod
    def from_dict(cls, figures: dict[str, Any]) -> "Result":
        return cls(figures, lines(figures))

    def show(self) -> None:
        Terminal(highlight=False, markup=False).print(self.shown, crop=False)


@dataclass(frozen=True)
class Answers:
    """Answers that are shown while they are generated."""

    images: Sequence[str]
    pieces: Callable[[str], Iterator[str]]
    ok = True

    @property
    def data(self) -> list[dict[str, str]]:
        return [{"image": image, "answer": "".join(self.pieces(image))} for image in self.images]

    def show(self) -> None:
        for image in self.images:
            print(f"{image}: ".translate(CODES) if len(self.images) > 1 else "", end="")
            for piece in self.pieces(image):
                print(piece.translate(CODES), end="", flush=True)
            print()


def planned(figures: dict[str, Any], config: str) -> Result:
    """A dry run's result: figures, then settings as YAML."""
    from mlx_visalign.preflight.estimate import for_people

    return Result(figures, Group(lines(for_people(figures)), plain(config)))


def lines(figures: dict[str, Any]) -> Text:
    """One line per figure: name and value."""
    width = max([18, *map(len, figures)])
    return plain("\n".join(f"{name.replace('_', ' '):{width}} {_as_text(value)}" for name, value in figures.items()))


def plain(text: str) -> Text:
    """Text that is never wrapped, so paths can be copied."""
    return Text(text.translate(CODES), no_wrap=True, overflow="ignore")


def _as_text(value: Any) -> str:
    return ", ".join(f"{name} {number:g}" for name, number in value.items()) if isinstance(value, dict) else str(value)
