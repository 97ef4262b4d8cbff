"""Letters for pictures: DejaVu Sans, which comes with matplotlib, and for what it lacks a font that the system has."""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib

FALLBACKS = (
    *("PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),  # a Mac's
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei", "Noto Emoji", "Symbola"),
)
"""In the order in which they are asked, where they are installed. Colour emoji fonts are pictures of one size: of no use."""
UNKNOWN = "\N{WHITE SQUARE}"


def showable(text: str) -> str:
    """The text with a square for each character that no font has. Signs that only join or vary others are left out there."""
    return "".join(character if _font_of(character, False) else _instead_of(character) for character in text)


def squares(texts: Iterable[str]) -> str:
    """What the squares in these texts are, where there are any."""
    return f"{UNKNOWN}: a character that no font here has." if any(UNKNOWN in showable(text) for text in texts) else ""


def in_fonts(text: str, bold: bool) -> Iterator[tuple[str, Path]]:
    """`showable(text)` in pieces, each with the font file that has it."""
    for font, characters in groupby(showable(text), lambda character: _font_of(character, bold) or _dejavu(False)):
        yield "".join(characters), font


def families() -> list[str]:
    """What matplotlib shall draw with, in the same order."""
    return ["DejaVu Sans", *_installed()]


def _instead_of(character: str) -> str:
    return "" if unicodedata.category(character) in ("Cf", "Mn") else UNKNOWN


@cache
def _font_of(character: str, bold: bool) -> Path | None:
    """The first font that has the character. The system's fonts are looked at only when one is needed."""
    if ord(character) in _characters(_dejavu(bold)):
        return _dejavu(bold)
    return next((font for font in _installed().values() if ord(character) in _characters(font)), None)


def _dejavu(bold: bool) -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


@cache
def _characters(font: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font)).get_charmap())


@cache
def _installed() -> dict[str, Path]:
    """Those of the fallbacks that this machine has."""
    from matplotlib.font_manager import fontManager

    regular_last = sorted(fontManager.ttflist, key=lambda entry: (entry.weight, entry.style) == (400, "normal"))
    found = {entry.name: Path(entry.fname) for entry in regular_last}
    return {family: found[family] for family in FALLBACKS if family in found and found[family].is_file()}
