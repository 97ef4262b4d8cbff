"""Pages: text stays text whatever is in it, and a page needs nothing but itself."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mlx_visalign.reporting.contact_sheet import Caption, Cell, Span
from mlx_visalign.reporting.html import (
    POLICY,
    Html,
    commands,
    facts,
    gallery,
    join,
    marked_text,
    page,
    path,
    picture,
    png,
    table,
    tag,
)

HOSTILE = """</p></style><script>alert('1')</script><img src=x onerror="alert(2)">&lt;b&gt;"""
WHITE = Image.new("RGB", (8, 8), "white")


class Reader(HTMLParser):
    """What a browser would see: every element with its attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "made",
    [
        tag("p", HOSTILE),
        tag("p", "A cat.", title=HOSTILE),
        join(HOSTILE),
        table([HOSTILE], [tag("tr", tag("td", HOSTILE))]),
        facts([(HOSTILE, HOSTILE)]),
        marked_text([Span(HOSTILE), Span(HOSTILE, "wrong"), Span(HOSTILE, background="#fff")]),
        gallery([Cell(WHITE, (Caption(HOSTILE, (Span(HOSTILE),)),))], [Caption(HOSTILE, ())]),
        page(HOSTILE, HOSTILE),
    ],
)
def test_a_hostile_text_is_shown_and_never_obeyed(made):
    seen = Reader(made)
    assert not [name for name, _ in seen.elements if name == "script"]
    assert not [attributes for _, attributes in seen.elements if "onerror" in attributes or attributes.get("src") == "x"]
    assert HOSTILE in seen.text or ("p", {"title": HOSTILE}) in seen.elements


def test_markup_is_escaped_once():
    assert tag("p", tag("b", "1 < 2"), " & more") == "<p><b>1 &lt; 2</b> &amp; more</p>"
    assert (
        isinstance(join("a", tag("i", "b")), Html) and tag("i", cls="x", http_equiv="y") == '<i class="x" http-equiv="y"></i>'
    )


def test_a_page_may_run_nothing_and_load_nothing():
    made = page("Title", gallery([Cell(WHITE, ())]), png(b"1", "one"))
    seen = Reader(made)
    metas = {attributes.get("http-equiv"): attributes.get("content") for name, attributes in seen.elements if name == "meta"}
    assert metas["Content-Security-Policy"] == POLICY and "default-src 'none'" in POLICY and "script-src" not in POLICY
    assert "refresh" not in metas and '"refresh" content="20"' in page("Title", reload_after=20)
    assert not [value for _, attributes in seen.elements for value in attributes.values() if re.match("(https?:)?//", value)]
    assert "url(" not in made and "@import" not in made


def test_facts_keep_their_title():
    assert facts([("a", "1")], "With").startswith('<div class="kept"><h3>With</h3><dl class="facts">')
    assert "<h3>" not in facts([("a", "1")])


def test_names_and_commands_break_where_they_may():
    assert path("a/<b>/c") == "a/<wbr>&lt;b&gt;/<wbr>c" and path("tiny") == "tiny"
    made = commands(['visalign run --set a="b  c"', "<ls>"])
    assert "<code>--set</code>" in made and Reader(made).text == 'visalign run --set a="b  c" \n<ls> \n'


def shown(image):
    """The picture inside an <img>."""
    [(_, attributes)] = Reader(picture(image, "A & B")).elements
    kind, _, data = attributes["src"].partition(";base64,")
    return kind, attributes["class"], Image.open(BytesIO(base64.b64decode(data)))


def test_images_are_named_and_texts_run_as_their_letters_do():
    made = gallery([Cell(WHITE, (Caption("before", (Span("\u0643\u0644\u0628"),)),), "a <dog>")])
    assert 'alt="a &lt;dog&gt;"' in made
    assert '<b>before</b> <span class="said" dir="auto">\u0643\u0644\u0628</span>' in made


def test_small_images_lose_nothing_and_large_ones_are_shrunk():
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    kind, how, image = shown(Image.fromarray(noise))
    assert (kind, how) == ("data:image/png", "sharp")
    np.testing.assert_array_equal(np.array(image), noise)
    kind, how, image = shown(Image.new("RGBA", (2000, 1000)))
    assert (kind, how, image.size) == ("data:image/jpeg", "photo", (440, 220))
