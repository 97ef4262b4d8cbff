"""Contact sheets: a grid of images with wrapped, marked captions.

Drawn with Pillow, where the position of every line is known before drawing, so that nothing overlaps however long the texts.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mlx_visalign.data.images import open_image
from mlx_visalign.reporting.fonts import in_fonts, squares
from mlx_visalign.utils.files import replacing

Mark = Literal["plain", "heading", "wrong", "missed", "changed", "quiet"]

COLOURS: dict[Mark, str] = {
    "plain": "#1a1a1a",
    "heading": "#1a1a1a",
    "wrong": "#c8102e",
    "missed": "#a05a00",
    "changed": "#12488f",
    "quiet": "#666666",
}
BOLD = ("heading", "wrong", "missed")
CHANGED_BACKGROUND = "#dcebfb"

# Pixels. Seven screen pixels for each of the tiny world's, so that they are drawn sharply.
PICTURE = (440, 336)
COLUMN, GAP, MARGIN = 440, 44, 48
TEXT, LINE, TITLE = 21, 29, 32
MAX_LINES = 16  # per caption


@dataclass(frozen=True)
class Span:
    """Text with one mark."""

    text: str
    mark: Mark = "plain"
    background: str = ""  # a colour, where no mark fits


@dataclass(frozen=True)
class Caption:
    """A text below an image, with a bold heading."""

    heading: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Cell:
    """One image with its captions and alternative text."""

    image: Image.Image
    captions: tuple[Caption, ...]
    alt: str = "the image described"


Word = list[Span]  # more than one if a mark ends inside the word, as before a full stop


def contact_sheet(cells: Sequence[Cell], columns: int, title: str, legend: Sequence[Caption]) -> Image.Image:
    """Draw the cells row by row below title and legend.

    Captions longer than 16 lines are cut, with a note. Characters that no font has are drawn as squares, which the legend then
    explains.
    """
    width = max(columns * COLUMN + (columns - 1) * GAP, math.ceil(_length(title, True, TITLE)))
    tiles = [_cell(cell) for cell in cells]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    unknown = squares(span.text for cell in cells for caption in cell.captions for span in caption.spans)
    below = [*legend, Caption("", (Span(unknown, "quiet"),))] if unknown else legend
    blocks = [_title(title, width), _captions(below, width), *(_side_by_side(row, width) for row in rows)]
    sheet = Image.new("RGB", (width + 2 * MARGIN, sum(block.height + GAP for block in blocks) + MARGIN), "white")
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (MARGIN, top))
        top += block.height + GAP
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as unfinished:
        sheet.save(unfinished, "PNG")


def _cell(cell: Cell) -> Image.Image:
    shrinks = cell.image.width > PICTURE[0] or cell.image.height > PICTURE[1]
    method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    picture = ImageOps.contain(open_image(cell.image), PICTURE, method)
    text = _captions(cell.captions, COLUMN)
    tile = Image.new("RGB", (COLUMN, PICTURE[1] + LINE // 2 + text.height), "white")
    tile.paste(picture, (0, PICTURE[1] - picture.height))
    tile.paste(text, (0, PICTURE[1] + LINE // 2))
    return tile


def _side_by_side(tiles: Sequence[Image.Image], width: int) -> Image.Image:
    row = Image.new("RGB", (width, max(tile.height for tile in tiles)), "white")
    for index, tile in enumerate(tiles):
        row.paste(tile, (index * (COLUMN + GAP), 0))
    return row


def _title(title: str, width: int) -> Image.Image:
    block = Image.new("RGB", (width, TITLE), "white")
    _draw(ImageDraw.Draw(block), (0, TITLE - 6), title, COLOURS["plain"], True, TITLE)
    return block


def _captions(captions: Sequence[Caption], width: int) -> Image.Image:
    """The captions one below the other, half a line apart."""
    texts = [_lines(caption, width) for caption in captions]
    block = Image.new("RGB", (width, sum(len(lines) * LINE + LINE // 2 for lines in texts)), "white")
    draw = ImageDraw.Draw(block)
    top = 0
    for lines in texts:
        for line in lines:
            _write(draw, line, top)
            top += LINE
        top += LINE // 2
    return block


def _write(draw: ImageDraw.ImageDraw, words: list[Word], top: int) -> None:
    """One line."""
    left, baseline, space = 0.0, top + TEXT, _width(Span(" "))
    for word, following in zip(words, [*words[1:], []], strict=True):
        for span in word:
            width = _width(span)
            background = _background(span)
            if background:
                continues = span is word[-1] and following and _background(following[0]) == background
                draw.rectangle((left - 2, top, left + width + (space if continues else 2), top + LINE - 3), fill=background)
            _draw(draw, (left, baseline), span.text, COLOURS[span.mark], span.mark in BOLD, TEXT)
            left += width
        left += space


def _background(span: Span) -> str:
    return CHANGED_BACKGROUND if span.mark == "changed" else span.background


def _lines(caption: Caption, width: int) -> list[list[Word]]:
    """The caption's words, wrapped to the width."""
    lines: list[list[Word]] = [[]]
    used = 0.0
    for word in _words(caption):
        needed = sum(map(_width, word))
        if lines[-1] and used + needed > width:
            lines.append([])
            used = 0.0
        lines[-1].append(word)
        used += needed + _width(Span(" "))
    if len(lines) > MAX_LINES:
        lost = sum(map(len, lines[MAX_LINES - 1 :]))
        lines[MAX_LINES - 1 :] = [[[Span(f"… {lost} more words", "quiet")]]]
    return lines


def _words(caption: Caption) -> list[Word]:
    """The heading's and the caption's words. Very long words are split."""
    words = [[Span(word, "heading")] for word in caption.heading.split()]
    glued = False
    for span in caption.spans:
        for piece in re.findall(r"\s+|\S{1,20}", span.text):
            if glued and not piece.isspace():
                words[-1].append(replace(span, text=piece))
            elif not piece.isspace():
                words.append([replace(span, text=piece)])
            glued = False
        glued = bool(span.text) and not span.text[-1].isspace()
    return words


def _width(span: Span) -> float:
    return _length(span.text, span.mark in BOLD, TEXT)


def _length(text: str, bold: bool, size: int) -> float:
    return sum(_font(file, size).getlength(piece) for piece, file in in_fonts(text, bold))


def _draw(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, bold: bool, size: int) -> None:
    """Draw text on one line; `at` is the left end of its baseline."""
    left, baseline = at
    for piece, file in in_fonts(text, bold):
        draw.text((left, baseline), piece, fill=colour, font=_font(file, size), anchor="ls")
        left += _font(file, size).getlength(piece)


@cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
