import json

import pytest

from mlx_visalign.data.object_vocabulary import Vocabulary, coco80, plural, question, read_vocabulary
from mlx_visalign.utils.errors import UserError

COCO = coco80()


def names(text, vocabulary=COCO):
    return [mention.canonical for mention in vocabulary.mentions(text)]


def test_coco_has_its_80_classes_each_found_by_a_phrase_of_its_own():
    assert len(COCO.objects) == 80
    for entry in COCO.entries:
        for phrase in entry.phrases:
            assert names(phrase) == ([entry.canonical] if entry.canonical else []), phrase
            assert names(plural(phrase)) == ([entry.canonical] if entry.canonical else []), plural(phrase)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A man eats a hot dog next to his dog.", ["person", "hot dog", "dog"]),
        ("A hot-dog and two HOT  DOGS", ["hot dog", "hot dog"]),
        ("Two women, three children and some people", ["person"] * 3),
        ("a baseball player swings a baseball bat at a baseball game", ["person", "baseball bat"]),
        ("knives, wine glasses, mice, policemen and buses", ["knife", "wine glass", "mouse", "person", "bus"]),
        ("a teddy bear on the toilet, no toilet paper", ["teddy bear", "toilet"]),
        ("the train station has a train", ["train"]),
        ("an orange cat beside oranges", ["cat", "orange"]),
        ("a baby elephant", ["elephant"]),
        ("The dog's bowl; “cats”—and a television.", ["dog", "bowl", "cat", "tv"]),
        ("carpet, scattered, dogma, a dog-friendly place, catch_cat", []),
        ("the toaster oven", ["oven"]),
        ("", []),
    ],
)
def test_what_is_named(text, found):
    assert names(text) == found


def test_a_mention_knows_its_place():
    text = "Look: a Potted  Plant."
    (mention,) = COCO.mentions(text)
    assert text[mention.start : mention.end] == "Potted  Plant"


def test_the_objects_of_a_made_up_world_work_the_same_way(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(
        json.dumps([{"canonical": f"{colour} circle", "phrases": [f"{colour} circle"]} for colour in ("red", "blue")])
    )
    shapes = read_vocabulary(path)
    assert names("A small red circle at the left. Two blue circles.", shapes) == ["red circle", "blue circle"]


def test_a_file_extends_a_vocabulary_and_may_move_a_phrase():
    more = Vocabulary.from_rows([{"canonical": "lamp", "phrases": ["lamp", "table lamp", "monitor"]}], "more.json")
    vocabulary = COCO.extended(more)
    assert vocabulary.objects == (*COCO.objects, "lamp")
    assert names("a table lamp on a table by a monitor", vocabulary) == ["lamp", "dining table", "lamp"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must name at least one object"),
        ('[{"canonical": null, "phrases": ["a"]}]', "must name at least one object"),
        ('[{"canonical": "a", "phrases": ["b", " "]}]', r"file.json\[0\]: .* no empty one"),
        ('[{"canonical": "a", "phrases": []}]', "at least one phrase"),
        ('[{"canonical": "", "phrases": ["a"]}]', "canonical is empty"),
        ('[{"canonical": "a"}]', r"file.json\[0\]: the field 'phrases' is missing"),
        ('[{"canonical": "a", "phrases": "b"}]', r"file.json\[0\]: phrases must be a list"),
        ('{"dog": ["puppy"]}', "file.json must be a list"),
    ],
)
def test_a_bad_vocabulary_file_is_the_users_mistake(tmp_path, content, message):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path / "file.json")


def test_samples_follow_the_seed_and_do_not_repeat():
    assert COCO.sample(80, 1) == COCO.sample(80, 1) != COCO.sample(80, 2)
    assert sorted(COCO.sample(80, 1)) == sorted(COCO.objects)
    with pytest.raises(UserError, match="Asked for 81 different objects from a vocabulary of 80"):
        COCO.sample(81, 1)


def test_questions_have_the_right_article():
    assert question("dog") == "Is there a dog in the image?"
    assert question("umbrella") == "Is there an umbrella in the image?"
