"""A benchmark of one's own: names become the vocabulary's, and nothing outside of the images' folder is read."""

import json

import pytest

from mlx_visalign.data.object_vocabulary import coco80
from mlx_visalign.evaluation.benchmark import listed_benchmark
from mlx_visalign.utils.errors import UserError


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "outside.jpg").touch()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).touch()

    def read(listed):
        file = tmp_path / "truth.json"
        file.write_text(listed if isinstance(listed, str) else json.dumps(listed))
        return listed_benchmark(file, tmp_path / "images", coco80())

    return read


def test_objects_are_known_by_any_of_their_names_and_asked_about(benchmark, tmp_path):
    one = benchmark({"a.jpg": ["puppy", "couch"], "b.jpg": []})
    assert one.annotations == {"a.jpg": {"dog", "couch"}, "b.jpg": frozenset()}
    assert one.pictures["a.jpg"] == tmp_path / "images" / "a.jpg"
    for questions in one.questions.values():
        assert {question.image for question in questions} == {"a.jpg"}
        assert sorted(question.label for question in questions) == ["no", "no", "yes", "yes"]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({}, "lists no image"),
        ("[]", "must be named values"),
        ("{", "not valid JSON"),
        ({"a.jpg": "dog"}, "must be a list"),
        ({"c.jpg": ["dog"]}, r"there is no image .*c\.jpg"),
        ({"../outside.jpg": ["dog"]}, r"the image \.\./outside\.jpg lies outside"),
        ({"a.jpg": ["gizmo"]}, "a.jpg: the vocabulary has no object called 'gizmo'"),
        ({"a.jpg": ["cat and dog"]}, "no object called 'cat and dog'"),
    ],
)
def test_a_bad_list_is_the_users_mistake(benchmark, listed, message):
    with pytest.raises(UserError, match=message):
        benchmark(listed)
