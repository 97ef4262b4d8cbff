"""Letters for pictures: the system's fonts are asked for what DejaVu lacks, and what nobody has is a square."""

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import FontEntry, fontManager

from mlx_visalign.reporting import fonts

CAT, DOG = "\u732b", "\u72ac"


def write_font(file, character):
    """A font that has this character alone, a box."""
    pen = TTGlyphPen(None)
    for step, place in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 800)), (pen.lineTo, (800, 800)), (pen.lineTo, (800, 0))):
        step(place)
    pen.closePath()
    made = FontBuilder(1000)
    made.setupGlyphOrder([".notdef", "box"])
    made.setupCharacterMap({ord(character): "box"})
    made.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()})
    made.setupHorizontalMetrics({".notdef": (1000, 0), "box": (1000, 0)})
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Noto Sans CJK SC", "styleName": "Regular"})
    made.setupOS2()
    made.setupPost()
    made.save(file)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system with one font for cats, and one that was removed."""
    write_font(tmp_path / "cat.ttf", CAT)
    entries = {"cat.ttf": "Noto Sans CJK SC", "gone.ttf": "PingFang SC", "other.ttf": "Nobody Asked"}
    monkeypatch.setattr(
        fontManager, "ttflist", [FontEntry(fname=str(tmp_path / file), name=name) for file, name in entries.items()]
    )
    for remembered in (fonts._installed, fonts._font_of):
        remembered.cache_clear()
    yield tmp_path
    for remembered in (fonts._installed, fonts._font_of):
        remembered.cache_clear()


def test_a_font_of_the_system_has_what_dejavu_lacks(system):
    pieces = [(piece, file.name) for piece, file in fonts.in_fonts(f"A {CAT}{CAT}.", bold=True)]
    assert pieces == [("A ", "DejaVuSans-Bold.ttf"), (CAT * 2, "cat.ttf"), (".", "DejaVuSans-Bold.ttf")]
    assert fonts.families() == ["DejaVu Sans", "Noto Sans CJK SC"]
    assert not fonts.squares([CAT, "A dog."])


def test_what_no_font_has_is_a_square(system):
    woman_with_a_rocket, vowel_sign = "\U0001f469\u200d\U0001f680", "\u0941"
    assert fonts.showable(f"{DOG} and {CAT}") == f"{fonts.UNKNOWN} and {CAT}"
    assert fonts.UNKNOWN in fonts.showable(woman_with_a_rocket) and fonts.showable(f"a{vowel_sign}") == "a"
    assert fonts.squares(["A cat.", DOG]).startswith(fonts.UNKNOWN)


def test_plain_text_stays_as_it_is_and_asks_no_system(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: pytest.fail("the system's fonts were listed"))
    text = "Zwei Hunde \N{EM DASH} caf\u00e9, \u043a\u043e\u0442 \u2192 \u0628"
    assert fonts.showable(text) == text and [piece for piece, _ in fonts.in_fonts(text, bold=False)] == [text]
