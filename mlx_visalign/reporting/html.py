"""The building blocks of our HTML pages: one file each, without scripts, with nothing from the network.

Whatever goes into a page is text until a function here makes markup of it: a hostile caption is shown, never obeyed. Should
one slip through, the page's content policy lets it neither run nor load anything.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO

from PIL import Image

from mlx_visalign.data.images import open_image
from mlx_visalign.reporting.contact_sheet import PICTURE, Caption, Cell, Span

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VOID = {"img", "meta", "wbr"}
SHARP = 128  # pixels: smaller images are enlarged without blur, and kept without loss


class Html(str):
    """Markup. All other text is escaped where it meets markup."""


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """An element. Attributes are spelled as in Python: `cls` is class, `http_equiv` is http-equiv."""
    given = {"class" if key == "cls" else key.replace("_", "-"): html.escape(value) for key, value in attributes.items()}
    start = "".join([f"<{name}", *(f' {key}="{value}"' for key, value in given.items()), ">"])
    return Html(start) if name in VOID else Html(f"{start}{join(*children)}</{name}>")


def join(*children: str) -> Html:
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def page(title: str, *content: str, reload_after: int | None = None) -> str:
    """A whole document. `reload_after`: the browser reads it again after so many seconds."""
    again = () if reload_after is None else (tag("meta", http_equiv="refresh", content=str(reload_after)),)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        *again,
        tag("title", title),
        tag("style", _style()),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *content)), lang='en')}\n"


def section(title: str, *content: str) -> Html:
    return tag("section", tag("h2", title), *content)


def path(name: str) -> Html:
    """A name that may go on in the next line after a slash."""
    first, *others = name.split("/")
    return join(first, *(part for other in others for part in ("/", tag("wbr"), other)))


def paragraphs(sentences: Iterable[str], cls: str = "") -> Html:
    return join(*(tag("p", sentence, cls=cls) for sentence in sentences))


def table(head: Sequence[str], rows: Iterable[Html]) -> Html:
    """Scrolls within its box where it is wider than the page. `rows` are <tr>."""
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))), tag("tbody", *rows)),
        cls="scroll",
        tabindex="0",  # so that the keyboard can scroll it
    )


def facts(values: Iterable[tuple[str, str]], title: str = "") -> Html:
    """Names and values, in as many columns as there is room for; on paper kept together with their title."""
    rows = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values), cls="facts")
    return tag("div", *((tag("h3", title),) if title else ()), rows, cls="kept")


def commands(lines: Iterable[str]) -> Html:
    """To be copied. A narrow page breaks them between their words, never after the dashes of an option."""
    return tag("pre", *(join(*(part for word in line.split(" ") for part in (tag("code", word), " ")), "\n") for line in lines))


def words(spans: Iterable[Span]) -> Html:
    return join(*map(_word, spans))


def _word(span: Span) -> str:
    if span.background:
        return tag("mark", span.text, cls="shaded", style=f"background: {span.background}")
    return span.text if span.mark == "plain" else tag("mark", span.text, cls=span.mark)


def caption(one: Caption) -> Html:
    """The text runs as its letters do, from the right in Arabic, whatever the heading's language."""
    heading = (tag("b", one.heading), " ") if one.heading else ()
    return tag("p", *heading, tag("span", words(one.spans), cls="said", dir="auto"))


def gallery(cells: Sequence[Cell], legend: Sequence[Caption] = ()) -> Html:
    """What `contact_sheet.contact_sheet` draws, as text that can be selected."""
    figures = [tag("figure", picture(cell.image, cell.alt), tag("figcaption", *map(caption, cell.captions))) for cell in cells]
    return join(tag("div", *map(caption, legend), cls="legend"), tag("div", *figures, cls="gallery"))


def picture(image: Image.Image, alt: str) -> Html:
    """The image itself, small enough for a page."""
    small = max(image.size) <= SHARP
    shown = open_image(image).copy()
    shown.thumbnail(PICTURE, Image.Resampling.LANCZOS)
    data = BytesIO()
    shown.save(data, *(("PNG",) if small else ("JPEG",)), quality=88)
    kind = "png" if small else "jpeg"
    return tag("img", src=_data(f"image/{kind}", data.getvalue()), alt=alt, cls="sharp" if small else "photo")


def png(data: bytes, alt: str, cls: str = "drawn") -> Html:
    """A picture that was drawn before, in full size. A `cls` of "drawn chart" holds no photo, and turns dark with the page."""
    return tag("img", src=_data("image/png", data), alt=alt, cls=cls)


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _style() -> Html:
    return Html(files("mlx_visalign.reporting").joinpath("page.css").read_text(encoding="utf-8"))
