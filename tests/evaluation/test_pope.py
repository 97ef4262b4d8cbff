import pytest

from mlx_visalign.data.records import read_jsonl, write_jsonl
from mlx_visalign.evaluation import pope
from mlx_visalign.evaluation.bootstrap import intervals
from mlx_visalign.evaluation.object_labels import ObjectCounts
from mlx_visalign.evaluation.pope import Question, build_questions, parse_answer

OBJECTS = ("dog", "cat", "car", "bus", "apple", "bed")
SEEN = [{"dog", "cat"}, {"dog", "cat"}, {"dog", "bed"}, {"car", "bus"}, {"car", "bed"}, {"bed"}, {"bed", "cat"}]
COUNTS = ObjectCounts.of(SEEN)


@pytest.mark.parametrize(
    ("text", "ours", "official"),
    [
        ("No, there is no snowboard in the image.", "no", "no"),
        ("The image does not show it.", "no", "no"),
        ("Yes, there is a person. No car.", "yes", "yes"),
        ("There are not any cars", "no", "no"),
        ("No</s>", "no", "yes"),
        ("NO.", "no", "yes"),
        ("<s> No </s>", "no", "no"),
        ("No!", "no", "yes"),
        ("There isn't a dog.", "no", "yes"),
        ("There isn\u2019t a dog.", "no", "yes"),
        ("I cannot see one", "no", "yes"),
        ("Yes, but it is not red.", "yes", "no"),
        ("Nothing, nobody, knot, noon", "yes", "yes"),
        ("It is there. It is not red.", "yes", "yes"),
        ("", "yes", "yes"),
    ],
)
def test_answers_are_parsed(text, ours, official):
    assert (parse_answer(text), parse_answer(text, official=True)) == (ours, official)


def test_objects_are_counted_alone_and_together():
    assert COUNTS.popular() == ["bed", "cat", "dog", "car", "bus"]
    assert COUNTS.companions("dog") == ["cat", "bed"]
    assert COUNTS.companions("apple") == []


def asked(split, truth, seed=3, per_image=3):
    """(object, label) of each question about one image."""
    questions = build_questions({"1": truth}, OBJECTS, COUNTS, split, seed, per_image)
    return [(question.prompt.split(" in the ")[0].split(" ")[-1], question.label) for question in questions]


def test_each_split_chooses_its_own_absent_objects():
    assert asked("popular", {"dog"}, per_image=1) == [("dog", "yes"), ("bed", "no")]
    assert asked("adversarial", {"dog"}, per_image=1) == [("dog", "yes"), ("cat", "no")]
    drawn = {asked("random", {"dog"}, seed, per_image=1)[1] for seed in range(50)}
    assert drawn == {(name, "no") for name in OBJECTS if name != "dog"}


def test_adversarial_objects_are_different_and_never_run_out():
    labels = asked("adversarial", {"dog", "cat", "apple"})
    assert sorted(name for name, label in labels if label == "no") == ["bed", "bus", "car"]


@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_yes_and_no_are_balanced_and_the_objects_there_the_same_in_every_split(split):
    truths = [set(OBJECTS[:n]) for n in range(7)]
    for truth in truths:
        labels = asked(split, truth)
        there = [name for name, label in labels if label == "yes"]
        assert len(labels) == 2 * len(there) == 2 * min(3, len(truth), 6 - len(truth))
        assert set(there) <= truth and not {name for name, label in labels if label == "no"} & truth
        assert there == [name for name, label in asked("random", truth) if label == "yes"]


def test_questions_are_records_with_ids_of_their_own(tmp_path):
    annotations = {"1": {"dog"}, "2": {"apple", "cat"}}
    questions = build_questions(annotations, OBJECTS, COUNTS, "popular", seed=0)
    assert len({question.id for question in questions}) == len(questions) == 6
    assert any(question.prompt == "Is there an apple in the image?" for question in questions)
    write_jsonl(tmp_path / "questions.jsonl", questions)
    assert read_jsonl(tmp_path / "questions.jsonl", Question) == questions


def test_the_figures_of_answers_joined_by_id_and_the_missing_ones():
    labels = {"a": "yes", "b": "yes", "c": "yes", "d": "no", "e": "no", "f": "no"}
    questions = [Question(id, f"image {id in 'ab'}", "?", label) for id, label in labels.items()]
    answers = {"f": "No.", "e": "Yes", "d": "No", "b": "No</s>", "a": "Yes", "unasked": "No"}
    counts, missing = pope.count(questions, answers)
    found = {name: interval.value for name, interval in intervals(counts, pope.metrics, 0, draws=10).items()}
    assert missing == ["c"]
    assert found == pytest.approx({"accuracy": 3 / 5, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "yes_rate": 2 / 5})

    counts, _ = pope.count(questions, answers, official=True)
    assert intervals(counts, pope.metrics, 0, draws=10)["recall"].value == 1


def test_never_saying_yes_divides_by_nothing_and_scores_nothing():
    counts, _ = pope.count([Question("a", "1", "?", "yes")], {"a": "no"})
    assert intervals(counts, pope.metrics, 0, draws=10)["f1"].value == 0
