import pytest

from mlx_visalign.data.object_vocabulary import coco80
from mlx_visalign.evaluation import chair
from mlx_visalign.evaluation.bootstrap import intervals
from mlx_visalign.utils.errors import UserError

COCO = coco80()
TRUTH = {"1": {"dog", "person", "car"}, "2": {"cat"}, "3": {"bed"}}


def figures(texts, truth=TRUTH):
    found = intervals(chair.count(texts, truth, COCO), chair.metrics, seed=0, draws=10)
    return {name: interval.value for name, interval in found.items()}


def test_the_figures_of_three_descriptions_counted_by_hand():
    texts = {
        "1": "A man walks a dog. The man is tall.",  # person, dog, person again; the car is missed
        "2": "A cat and two dogs on a couch.",  # cat; dog and couch are not there
        "3": "An empty room.",  # nothing named, the bed is missed
    }
    chair_i, recall = 2 / 6, 3 / 5
    assert figures(texts) == pytest.approx(
        {
            "chair_i": chair_i,
            "chair_s": 1 / 3,
            "recall": recall,
            "f1": 2 * (1 - chair_i) * recall / (1 - chair_i + recall),
            "words": (9 + 8 + 3) / 3,
            "objects": 6 / 3,
            "duplicates": 1 / 6,
        }
    )


def test_a_repeated_hallucination_counts_again():
    assert figures({"2": "A dog, a dog and a cat."})["chair_i"] == pytest.approx(2 / 3)


def test_saying_nothing_has_no_hallucination_and_no_merit():
    silent = figures({"1": ""})
    assert (silent["chair_i"], silent["chair_s"], silent["recall"], silent["f1"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("texts", "truth", "message"),
    [
        ({"9": "A dog."}, TRUTH, "The image 9 has no annotation"),
        ({"1": "A dog."}, {"1": {"dog", "Television"}}, r"not in the vocabulary: \['Television'\]"),
        ({}, TRUTH, "Nothing to evaluate"),
    ],
)
def test_what_cannot_be_counted_is_refused(texts, truth, message):
    with pytest.raises(UserError, match=message):
        figures(texts, truth)
