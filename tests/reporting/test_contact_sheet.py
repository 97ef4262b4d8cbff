"""The contact sheet: every word has its place inside its column, marked as asked, and nothing is lost in silence."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from mlx_visalign.reporting.contact_sheet import (
    CHANGED_BACKGROUND,
    COLOURS,
    COLUMN,
    LINE,
    MAX_LINES,
    PICTURE,
    Caption,
    Cell,
    Span,
    _lines,
    _width,
    contact_sheet,
    save_sheet,
)

WHITE = Image.new("RGB", (48, 48), "white")


def sheet(*captions, picture=WHITE, columns=1):
    return np.array(contact_sheet([Cell(picture, captions)] * columns, columns, "Title", []))


def text(line):
    return " ".join("".join(span.text for span in word) for word in line)


@pytest.mark.parametrize("words", ["red circle " * 40, "x" * 300, "WWWWW " * 60, "short"])
def test_lines_fit_the_column_and_keep_every_word(words):
    lines = _lines(Caption("before", (Span(words),)), COLUMN)
    for line in lines:
        spans = [span for word in line for span in word]
        assert sum(map(_width, spans)) + (len(line) - 1) * _width(Span(" ")) <= COLUMN
    assert "".join(map(text, lines)).replace(" ", "") == "before" + words.replace(" ", "")


def test_a_cut_caption_says_how_much_is_missing():
    lines = _lines(Caption("", (Span("word " * 500),)), COLUMN)
    shown = sum(map(len, lines[:-1]))
    assert len(lines) == MAX_LINES and text(lines[-1]) == f"… {500 - shown} more words"


def test_a_mark_ends_before_the_full_stop():
    [line] = _lines(Caption("", (Span("A "), Span("red star", "wrong"), Span(". Done"))), COLUMN)
    assert [[(span.text, span.mark) for span in word] for word in line] == [
        [("A", "plain")],
        [("red", "wrong")],
        [("star", "wrong"), (".", "plain")],
        [("Done", "plain")],
    ]


def test_marked_words_have_their_colour():
    red = ImageColor.getrgb(COLOURS["wrong"])
    assert (sheet(Caption("", (Span("star", "wrong"),))) == red).all(axis=-1).any()
    assert not (sheet(Caption("", (Span("star"),))) == red).all(axis=-1).any()


def test_marked_words_are_joined():
    blue = ImageColor.getrgb(CHANGED_BACKGROUND)
    marked = (sheet(Caption("", (Span("A "), Span("red star here", "changed"), Span(".")))) == blue).all(axis=-1)
    [row] = np.flatnonzero(marked.any(axis=1))[:1]  # above all letters
    columns = np.flatnonzero(marked[row])
    assert len(columns) > 100 and (np.diff(columns) == 1).all()


def test_a_character_without_a_font_is_a_square_and_the_legend_says_so():
    lost, known = (Cell(WHITE, (Caption("before", (Span(said),)),)) for said in ("A \U0010fffd.", "A dog."))
    assert contact_sheet([lost], 1, "T", []).height - contact_sheet([known], 1, "T", []).height > LINE


def test_small_pictures_keep_sharp_pixels_and_large_ones_fit():
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    grown = sheet(picture=Image.fromarray(noise))
    scale = PICTURE[1] // 48
    enlarged = noise.repeat(scale, axis=0).repeat(scale, axis=1)
    starts = np.argwhere((grown == noise[0, 0]).all(axis=-1))[0]
    np.testing.assert_array_equal(grown[starts[0] :][: len(enlarged), starts[1] :][:, : len(enlarged)], enlarged)
    assert sheet(picture=Image.new("RGB", (4000, 300))).shape == grown.shape


def test_rows_and_columns(tmp_path):
    one, three = sheet(columns=1), sheet(columns=3)
    assert three.shape[0] == one.shape[0] and three.shape[1] - one.shape[1] >= 2 * COLUMN
    long_title = contact_sheet([Cell(WHITE, ())], 1, "A title wider than one column of pictures is", [])
    assert long_title.width > one.shape[1]
    save_sheet(long_title, tmp_path / "plots" / "sheet.png")
    assert Image.open(tmp_path / "plots" / "sheet.png").size == long_title.size
