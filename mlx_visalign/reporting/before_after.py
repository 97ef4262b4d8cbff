"""Contact sheet of descriptions before and after training.

Images are chosen independently of the answers, so it shows regressions as well as improvements.
"""

import difflib
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from PIL import Image

from mlx_visalign.data.images import Picture, open_image
from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.runner import Evaluation
from mlx_visalign.reporting.contact_sheet import PICTURE, Caption, Cell, Mark, Span, contact_sheet
from mlx_visalign.utils.seeding import number_for

SHOWN, COLUMNS = 12, 4
NAMES = ("before", "after")
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|\w+(?:['\u2019-]\w+)*"
)  # each character of Chinese and Japanese, which have no spaces
Place = tuple[int, int, Mark]
"""Start and end (exclusive) in a text, and the mark of the characters between."""

CHANGED = Span("words only in this answer", "changed")
LABELLED = (
    Span("Marks: ", "quiet"),
    Span("named, but not in the image", "wrong"),
    Span(", ", "quiet"),
    Span("in the image, but not named", "missed"),
    Span(", ", "quiet"),
    CHANGED,
)
UNLABELLED = (
    Span("Marks: ", "quiet"),
    CHANGED,
    Span(". The content of these images is unknown, so nothing is marked as wrong.", "quiet"),
)


def before_after_sheet(before: Evaluation, after: Evaluation) -> Image.Image:
    """A dozen images with both descriptions."""
    cells, benchmark = before_after_cells(before, after), before.benchmark
    return contact_sheet(cells, min(COLUMNS, len(cells)), f"Before and after: {which(benchmark)}", legend(benchmark))


def before_after_cells(before: Evaluation, after: Evaluation, names: tuple[str, str] = NAMES, count: int = SHOWN) -> list[Cell]:
    """`count` images with both descriptions.

    Images are chosen by a hash of their names, never by the answers.
    """
    benchmark = before.benchmark
    return [
        Cell(
            _opened(benchmark.pictures[image]),
            _captions(benchmark, before.description(image), after.description(image), names),
            Path(image).name,
        )
        for image in sorted(benchmark.pictures, key=lambda image: number_for("shown", image))[:count]
    ]


def which(benchmark: Benchmark, count: int = SHOWN) -> str:
    """A phrase for the images that `before_after_cells` shows."""
    some = count < len(benchmark.pictures)
    return f"{count} of {benchmark.name}, chosen by name, never by the answers" if some else benchmark.name


def legend(benchmark: Benchmark) -> list[Caption]:
    return [Caption("", LABELLED if benchmark.annotations else UNLABELLED)]


def tally(before: Evaluation, after: Evaluation, names: tuple[str, str] = NAMES) -> str:
    """Counts of improved and worse descriptions, over all images.

    By hallucinated objects; without ground truth only different descriptions are counted.
    """
    images = list(before.benchmark.pictures)
    different = sum(before.description(image).text != after.description(image).text for image in images)
    said = f"{different} of {len(images)} descriptions differ"
    if not before.benchmark.annotations:
        return f"{said}."
    first, second = (evaluation.counts["chair"][0].columns["hallucinated"] for evaluation in (before, after))
    fewer, more = (second < first).sum(), (second > first).sum()
    return (
        f"{said}. Hallucinated objects: {names[1]} has fewer than {names[0]} in {fewer} of them, more in {more}, "
        f"equally many in {different - fewer - more}."
    )


def _opened(picture: Picture) -> Image.Image:
    """The image, shrunk at once: a dozen photos at full size can fill the memory."""
    shown = open_image(picture).copy()
    shown.thumbnail(PICTURE, Image.Resampling.LANCZOS)
    return shown


def _captions(benchmark: Benchmark, before: Response, after: Response, names: tuple[str, str] = NAMES) -> tuple[Caption, ...]:
    image = Caption("", (Span(Path(before.image).name, "quiet"),))
    first, second = ((before, after), (after, before))
    return image, *(Caption(name, _shown(benchmark, *two)) for name, two in zip(names, (first, second), strict=True))


def _shown(benchmark: Benchmark, said: Response, other: Response) -> tuple[Span, ...]:
    """The description with changes and errors marked, followed by the objects it misses."""
    places = _changes(said.text, other.text)
    missed = ""
    if benchmark.annotations:
        truth, mentions = benchmark.annotations[said.image], benchmark.vocabulary.mentions(said.text)
        places += [(mention.start, mention.end, "wrong") for mention in mentions if mention.canonical not in truth]
        missed = ", ".join(sorted(truth - {mention.canonical for mention in mentions}))
    cut_off = () if said.finished else (Span(" … (cut off)", "quiet"),)
    return *marked(said.text, places), *cut_off, *((Span("  missed: ", "quiet"), Span(missed, "missed")) if missed else ())


def changed_words(text: str, other: str) -> tuple[Span, ...]:
    """The text with words marked that `other` lacks.

    Punctuation is ignored.
    """
    return marked(text, _changes(text, other))


def _changes(text: str, other: str) -> list[Place]:
    words, others = list(WORD.finditer(text)), WORD.findall(other)
    matcher = difflib.SequenceMatcher(None, [word[0] for word in words], others, autojunk=False)
    changes = [(i, j) for kind, i, j, _, _ in matcher.get_opcodes() if kind != "equal" and i < j]
    return [(words[i].start(), words[j - 1].end(), "changed") for i, j in changes]


def marked(text: str, places: Iterable[Place]) -> tuple[Span, ...]:
    """The text in marked spans; later places override earlier ones."""
    marks: list[Mark] = ["plain"] * len(text)
    for start, end, mark in places:
        marks[start:end] = [mark] * (end - start)
    runs = groupby(zip(marks, text, strict=True), key=lambda pair: pair[0])
    return tuple(Span("".join(character for _, character in run), mark) for mark, run in runs)
