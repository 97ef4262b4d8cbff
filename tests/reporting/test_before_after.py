"""Before and after: what is wrong and what is missing is marked, and no image is shown because of its answers."""

import pytest
from made_evaluations import benchmark, said
from PIL import Image

from mlx_visalign.data.records import Response
from mlx_visalign.evaluation.benchmark import Benchmark
from mlx_visalign.evaluation.runner import Evaluation, Protocol
from mlx_visalign.reporting import before_after
from mlx_visalign.reporting.before_after import _captions, before_after_sheet, changed_words, marked

ANSWERS = {"a": "Yes.", "b": "No."}


def response(image, text, finished=True):
    return Response(image, image, Protocol().prompt, "describe", "clean", text, finished, 5)


def marks(spans, mark):
    return [span.text for span in spans if span.mark == mark]


def test_wrong_and_missing_objects_are_marked():
    before = response("b", "A dog, two cups and a dog.")
    _, first, second = _captions(benchmark(), before, response("b", "Cats and a dog.", finished=False))
    assert (first.heading, second.heading) == ("before", "after")
    assert marks(first.spans, "wrong") == ["cups"] and marks(first.spans, "missed") == ["cat"]
    assert marks(second.spans, "wrong") == marks(second.spans, "missed") == []
    assert marks(second.spans, "quiet") == [" … (cut off)"]
    assert marks(first.spans, "changed") == ["A dog, two "] and marks(second.spans, "changed") == ["Cats"]


def test_without_labels_changed_words_are_marked():
    plain = Benchmark("photos", benchmark().pictures)
    _, first, second = _captions(plain, response("a", "A cat, and a dog."), response("a", "A cat and one dog"))
    assert marks(first.spans, "changed") == ["a"] and marks(second.spans, "changed") == ["one"]
    assert not marks(first.spans + second.spans, "wrong")


@pytest.mark.parametrize("other", ["", "A cat.", "one red star at the top, no cat", "A cat and a dog."])
def test_marking_changes_no_text(other):
    spans = changed_words("A cat and a dog.", other)
    assert "".join(span.text for span in spans) == "A cat and a dog."
    assert bool(marks(spans, "changed")) == (other != "A cat and a dog.")


def test_of_marks_that_overlap_the_later_is_seen():
    assert [(span.text, span.mark) for span in marked("abc", [(0, 3, "changed"), (0, 1, "wrong"), (2, 3, "wrong")])] == [
        ("a", "wrong"),
        ("b", "changed"),
        ("c", "wrong"),
    ]


def test_a_dozen_images_are_chosen_by_name_alone(monkeypatch):
    names = [f"image-{number}" for number in range(30)]
    plain = Benchmark("photos", {name: Image.new("RGB", (4, 4)) for name in names})
    shown = []
    monkeypatch.setattr(before_after, "contact_sheet", lambda cells, *rest: shown.append(cells) or Image.new("RGB", (1, 1)))
    for text in ("good", "bad"):
        evaluation = Evaluation(plain, Protocol(), [response(name, text) for name in names])
        before_after_sheet(evaluation, evaluation)
    good, bad = ([cell.captions[0].spans[0].text for cell in cells] for cells in shown)
    assert good == bad and len(set(good)) == 12 and good != names[:12]


def test_photos_are_shrunk_when_opened(tmp_path):
    Image.new("RGB", (3000, 1000), "red").save(tmp_path / "photo.jpg")
    assert before_after._opened(tmp_path / "photo.jpg").size == (440, 147)


def test_the_sheet_is_drawn():
    before = said({"a": "A cat and a dog.", "b": "A cat.", "c": "A cup."}, ANSWERS)
    after = said({"a": "A cat.", "b": "A cat.", "c": "Nothing."}, ANSWERS)
    assert before_after_sheet(before, after).width > 3 * 440
