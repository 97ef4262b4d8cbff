"""Fonts for pictures, with fallbacks for missing characters.

DejaVu Sans comes with matplotlib; characters that it lacks are drawn with a font installed on the system.
"""

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
"""Tried in this order if installed. Colour emoji fonts are left out: they are bitmaps of a single size."""
UNKNOWN = "\N{WHITE SQUARE}"


def showable(text: str) -> str:
    """The text with a square for each undrawable character.

    Undrawable joiners and combining marks are left out.
    """
    return "".join(character if _font_of(character, False) else _instead_of(character) for character in text)


def squares(texts: Iterable[str]) -> str:
    """A note that explains squares, or "" without any."""
    return f"{UNKNOWN}: a character that no installed font has." if any(UNKNOWN in showable(text) for text in texts) else ""


def in_fonts(text: str, bold: bool) -> Iterator[tuple[str, Path]]:
    """`showable(text)` in pieces, each with its font file."""
    for font, characters in groupby(showable(text), lambda character: _font_of(character, bold) or _dejavu(False)):
        yield "".join(characters), font


def families() -> list[str]:
    """Font families for matplotlib, in the same order."""
    return ["DejaVu Sans", *_installed()]


def _instead_of(character: str) -> str:
    return "" if unicodedata.category(character) in ("Cf", "Mn") else UNKNOWN


@cache
def _font_of(character: str, bold: bool) -> Path | None:
    """The first font that has the character. The system's fonts are read only if needed."""
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
    """The fallbacks installed on this machine, with their files."""
    from matplotlib.font_manager import fontManager

    regular_last = sorted(fontManager.ttflist, key=lambda entry: (entry.weight, entry.style) == (400, "normal"))
    found = {entry.name: Path(entry.fname) for entry in regular_last}
    return {family: found[family] for family in FALLBACKS if family in found and found[family].is_file()}
