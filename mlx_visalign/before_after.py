"""A contact sheet of what a model said before and after training, losses shown as openly as wins."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mlx_visalign.evals.benchmark import Benchmark, Picture
from mlx_visalign.evaluate import Evaluation
from mlx_visalign.images import open_image
from mlx_visalign.keys import number_for
from mlx_visalign.records import Response
from mlx_visalign.sheet import PICTURE, Caption, Cell, Mark, Span, contact_sheet

SHOWN, COLUMNS = 12, 4
NAMES = ("before", "after")
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
LABELLED = (
    Span("Red", "wrong"),
    Span(": named, but not there.  ", "quiet"),
    Span("Amber", "missed"),
    Span(": there, but not named.", "quiet"),
)
UNLABELLED = (
    Span("Blue", "changed"),
    Span(": words that only this answer has. Nobody has said what is in these images, so nothing is marked as wrong.", "quiet"),
)


def before_after_sheet(before: Evaluation, after: Evaluation) -> Image.Image:
    """A dozen images with both descriptions."""
    cells, benchmark = before_after_cells(before, after), before.benchmark
    return contact_sheet(cells, min(COLUMNS, len(cells)), f"Before and after: {which(benchmark)}", legend(benchmark))


def before_after_cells(before: Evaluation, after: Evaluation, names: tuple[str, str] = NAMES, count: int = SHOWN) -> list[Cell]:
    """`count` images with both descriptions. Which ones depends on a hash of their names, never on the answers."""
    benchmark = before.benchmark
    return [
        Cell(
            _opened(benchmark.pictures[image]),
            _captions(benchmark, before.description(image), after.description(image), names),
        )
        for image in sorted(benchmark.pictures, key=lambda image: number_for("shown", image))[:count]
    ]


def which(benchmark: Benchmark, count: int = SHOWN) -> str:
    """What `before_after_cells` shows, in words."""
    some = count < len(benchmark.pictures)
    return f"{count} of {benchmark.name}, chosen by a hash of their names" if some else benchmark.name


def legend(benchmark: Benchmark) -> list[Caption]:
    return [Caption("", LABELLED if benchmark.annotations else UNLABELLED)]


def tally(before: Evaluation, after: Evaluation) -> str:
    """Wins and losses counted over all images: where it is known what is in them, by the objects made up."""
    images = list(before.benchmark.pictures)
    changed = sum(before.description(image).text != after.description(image).text for image in images)
    said = f"{changed} of {len(images)} descriptions changed"
    if not before.benchmark.annotations:
        return f"{said}."
    made_up, then = (evaluation.counts["chair"][0].columns["hallucinated"] for evaluation in (before, after))
    return (
        f"{said}: {(then < made_up).sum()} name fewer objects that are not there than before, {(then > made_up).sum()} name "
        f"more, and {changed - (then != made_up).sum()} as many."
    )


def _opened(picture: Picture) -> Image.Image:
    """Photos are shrunk at once: a dozen of them at full size can fill a memory."""
    if isinstance(picture, Image.Image):
        return picture
    photo = open_image(picture)
    photo.thumbnail(PICTURE, Image.Resampling.LANCZOS)
    return photo


def _captions(benchmark: Benchmark, before: Response, after: Response, names: tuple[str, str] = NAMES) -> tuple[Caption, ...]:
    image = Caption("", (Span(Path(before.image).name, "quiet"),))
    if benchmark.annotations:
        return image, *(Caption(name, _judged(benchmark, said)) for name, said in zip(names, (before, after), strict=True))
    return (
        image,
        Caption(names[0], (*changed_words(before.text, after.text), *_cut_off(before))),
        Caption(names[1], (*changed_words(after.text, before.text), *_cut_off(after))),
    )


def _judged(benchmark: Benchmark, said: Response) -> tuple[Span, ...]:
    """The description with what is wrong in it marked, then what is missing from it."""
    truth = benchmark.annotations[said.image]
    mentions = benchmark.vocabulary.mentions(said.text)
    wrong = [(mention.start, mention.end) for mention in mentions if mention.canonical not in truth]
    missed = ", ".join(sorted(truth - {mention.canonical for mention in mentions}))
    note = (Span("  missed: ", "quiet"), Span(missed, "missed")) if missed else ()
    return *marked(said.text, wrong, "wrong"), *_cut_off(said), *note


def _cut_off(said: Response) -> tuple[Span, ...]:
    return () if said.finished else (Span(" … (cut off)", "quiet"),)


def changed_words(text: str, other: str) -> tuple[Span, ...]:
    """The text with the words marked that have no counterpart in the other; punctuation does not count."""
    words, others = list(WORD.finditer(text)), WORD.findall(other)
    matcher = difflib.SequenceMatcher(None, [word[0] for word in words], others, autojunk=False)
    changes = [(i, j) for kind, i, j, _, _ in matcher.get_opcodes() if kind != "equal" and i < j]
    return marked(text, [(words[i].start(), words[j - 1].end()) for i, j in changes], "changed")


def marked(text: str, places: Iterable[tuple[int, int]], mark: Mark) -> tuple[Span, ...]:
    """The text in spans, those from start to end (not included) marked. Places are in order and do not overlap."""
    spans, at = [], 0
    for start, end in places:
        spans += [Span(text[at:start]), Span(text[start:end], mark)]
        at = end
    return tuple(span for span in (*spans, Span(text[at:])) if span.text)
