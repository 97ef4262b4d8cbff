"""Rows survive a kill and are cut back on resume; warnings come when there is reason and not before."""

import pytest

from mlx_visalign.data.training_log import WINDOW, append_row, cut_back, read_metrics, warning_signs

HEALTHY = {
    "dpo_loss": 0.6931,
    "accuracy": 0.8,
    "chosen_reward": 0.1,
    "chosen_length": 20.0,
    "rejected_length": 21.0,
}


def rows(count=WINDOW, **changed):
    return [{"iteration": index + 1, **HEALTHY, **changed} for index in range(count)]


def test_rows_after_the_checkpoint_and_a_torn_one_are_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for row in rows(5):
        append_row(file, row)
    with file.open("a") as torn:
        torn.write('{"iteration": 6, "train_l')
    assert read_metrics(file) == rows(5)
    cut_back(file, 3, finished=False)
    append_row(file, rows(4)[-1])
    assert read_metrics(file) == rows(4)


@pytest.mark.parametrize(
    "odd", [{"accuracy": "0.8"}, {"accuracy": None}, {"iteration": 2.0}, {"iteration": [2]}, {"dpo_loss": {}}]
)
def test_what_is_no_row_of_numbers_ends_the_file(tmp_path, odd):
    file = tmp_path / "metrics.jsonl"
    for row in (rows(1)[0], rows(2)[1] | odd, rows(3)[2]):
        append_row(file, row)
    assert read_metrics(file) == rows(1)
    file.write_text('{"iteration": 1, "a": 1}\n{"iteration": 2}\n')
    assert read_metrics(file) == [{"iteration": 1, "a": 1}]


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_healthy_training_and_one_without_pairs_warn_of_nothing():
    assert warning_signs([]) == {}
    assert warning_signs(rows()) == {}
    assert warning_signs(rows(dpo_loss=2.08, loss_at_start=2.0794)) == {}
    assert warning_signs([{"iteration": 1, "train_loss": 9.0}]) == {}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dpo_loss": 0.75}, "reference and policy disagree"),
        ({"dpo_loss": 0.6931, "loss_at_start": 2.0794}, "The first loss is 0.693, not 2.079"),
        ({"chosen_reward": -1.5}, "less likely"),
        ({"accuracy": 0.51}, "is at chance"),
        ({"chosen_length": 40.0}, "1.90 times the tokens"),
        ({"rejected_length": 40.0}, "0.50 times the tokens"),
    ],
)
def test_each_sign_is_told_once(changed, words):
    (sign,) = warning_signs(rows(**changed)).values()
    assert words in sign


def test_what_needs_many_updates_waits_for_them():
    assert warning_signs(rows(WINDOW - 1, chosen_reward=-1.5, accuracy=0.5)) == {}
