"""Building blocks of self-contained HTML pages.

A page is one file without scripts or anything from the network. All content is escaped unless a function here made it markup,
so a hostile caption is displayed, not executed. As a second line of defence, the page's content security policy forbids
scripts and external resources.
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
SHARP = 128  # pixels: images up to this size are enlarged without blur and stored losslessly


class Html(str):
    """Markup; any other text is escaped when combined with it."""


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """An HTML element.

    Attributes have Python names: `cls` is class, `http_equiv` is http-equiv.
    """
    given = {"class" if key == "cls" else key.replace("_", "-"): html.escape(value) for key, value in attributes.items()}
    start = "".join([f"<{name}", *(f' {key}="{value}"' for key, value in given.items()), ">"])
    return Html(start) if name in VOID else Html(f"{start}{join(*children)}</{name}>")


def join(*children: str) -> Html:
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def page(title: str, *content: str, reload_after: int | None = None) -> str:
    """A complete document.

    `reload_after`: seconds after which the browser reloads it.
    """
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
    """A name that may break after a slash."""
    first, *others = name.split("/")
    return join(first, *(part for other in others for part in ("/", tag("wbr"), other)))


def paragraphs(sentences: Iterable[str], cls: str = "") -> Html:
    return join(*(tag("p", sentence, cls=cls) for sentence in sentences))


def table(head: Sequence[str], rows: Iterable[Html]) -> Html:
    """A table that scrolls if wider than the page.

    `rows` are <tr> elements.
    """
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))), tag("tbody", *rows)),
        cls="scroll",
        tabindex="0",  # so that the keyboard can scroll it
    )


def facts(values: Iterable[tuple[str, str]], title: str = "") -> Html:
    """Names and values, in as many columns as fit.

    In print they stay on one page with their title.
    """
    rows = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values), cls="facts")
    return tag("div", *((tag("h3", title),) if title else ()), rows, cls="kept")


def commands(lines: Iterable[str]) -> Html:
    """Commands to copy.

    A narrow page breaks them at spaces, never after the dashes of an option.
    """
    return tag("pre", *(join(*(part for word in line.split(" ") for part in (tag("code", word), " ")), "\n") for line in lines))


def marked_text(spans: Iterable[Span]) -> Html:
    return join(*map(_marked, spans))


def _marked(span: Span) -> str:
    if span.background:
        return tag("mark", span.text, cls="shaded", style=f"background: {span.background}")
    return span.text if span.mark == "plain" else tag("mark", span.text, cls=span.mark)


def caption(one: Caption) -> Html:
    """A caption, whose text direction follows its letters.

    So Arabic runs from right to left whatever the language of the heading.
    """
    heading = (tag("b", one.heading), " ") if one.heading else ()
    return tag("p", *heading, tag("span", marked_text(one.spans), cls="said", dir="auto"))


def gallery(cells: Sequence[Cell], legend: Sequence[Caption] = ()) -> Html:
    """A `contact_sheet.contact_sheet` with selectable text."""
    figures = [tag("figure", picture(cell.image, cell.alt), tag("figcaption", *map(caption, cell.captions))) for cell in cells]
    return join(tag("div", *map(caption, legend), cls="legend"), tag("div", *figures, cls="gallery"))


def picture(image: Image.Image, alt: str) -> Html:
    """The embedded image, shrunk for a page."""
    small = max(image.size) <= SHARP
    shown = open_image(image).copy()
    shown.thumbnail(PICTURE, Image.Resampling.LANCZOS)
    data = BytesIO()
    shown.save(data, *(("PNG",) if small else ("JPEG",)), quality=88)
    kind = "png" if small else "jpeg"
    return tag("img", src=_data(f"image/{kind}", data.getvalue()), alt=alt, cls="sharp" if small else "photo")


def png(data: bytes, alt: str, cls: str = "drawn") -> Html:
    """An embedded PNG in full size.

    With the `cls` "drawn chart", for charts without photos, its colours are inverted in dark mode.
    """
    return tag("img", src=_data("image/png", data), alt=alt, cls=cls)


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _style() -> Html:
    return Html(files("mlx_visalign.reporting").joinpath("page.css").read_text(encoding="utf-8"))
