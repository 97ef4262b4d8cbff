"""Trainings that are too short to change a model are named before and after, and longer ones are not."""

import pytest

from mlx_visalign.training.config import PPOSettings, TrainSettings, schedule_factor
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.training.training_length import PAIRS, UPDATES, look_back, short_training_warning


def rows_of(loop):
    return [{"learning_rate": loop.learning_rate * schedule_factor(loop, step)} for step in range(loop.iters)]


@pytest.mark.parametrize(
    ("settings", "count", "found"),
    [
        (
            PreferenceSettings(grad_accumulation_steps=16),
            18,
            "2 updates, 1 of them at a tenth or more of the learning rate, from 18",
        ),
        (PreferenceSettings(grad_accumulation_steps=16), 16, "1 update, none of them at a tenth or more"),
        (
            PreferenceSettings(iters=UPDATES - 1, schedule="constant", warmup_ratio=0),
            500,
            f"{UPDATES - 1} updates, from 500 pairs",
        ),
        (PreferenceSettings(iters=100), PAIRS - 1, f"from {PAIRS - 1} pairs"),
        (PreferenceSettings(iters=100, warmup_ratio=1.0, schedule="constant"), 500, None),
        (PreferenceSettings(iters=400, warmup_ratio=0.0, schedule="cosine"), 500, None),
        (PreferenceSettings(iters=26), PAIRS, None),
        (PPOSettings(iters=8), None, "8 updates, 7 of them at a tenth or more"),
        (PPOSettings(iters=240), None, None),
    ],
)
def test_what_is_too_short_is_said_ahead_and_afterwards(settings, count, found):
    loop = settings.loop(count or 1)
    ahead, after = short_training_warning(loop, count), look_back(rows_of(loop), settings, count)
    if found is None:
        assert (ahead, after) == (None, None)
        return
    moved = any(row["learning_rate"] for row in rows_of(loop))
    assert ahead.startswith("This training will hardly change the model: ") and found in ahead
    assert (
        after.startswith(f"This training {'can hardly have changed' if moved else 'has not changed'} the model: ")
        and found in after
    )
    assert "more images, more epochs" in ahead and ("pairs" in ahead) == (count is not None)
    assert (f"grad_accumulation_steps ({settings.grad_accumulation_steps} now)" in ahead) == (
        settings.grad_accumulation_steps > 1
    )


def test_so_many_updates_are_not_looked_at_one_by_one():
    """A number of updates that nobody lives to see took as long to judge."""
    assert short_training_warning(PreferenceSettings(iters=10**15).loop(500), 500) is None
    assert "none of them" in short_training_warning(PreferenceSettings(iters=1, warmup_ratio=1.0).loop(500), 500)


def test_most_of_a_long_warm_up_moves_nothing():
    loop = TrainSettings(1000, 1e-5, "cosine", warmup_ratio=0.03)
    assert short_training_warning(loop, 500) is None
    assert short_training_warning(TrainSettings(30, 1e-5, "linear", warmup_ratio=1.0), 500) is None
    assert "13 of them" in short_training_warning(TrainSettings(14, 1e-5, "constant", warmup_ratio=0.1), 500)


def test_ahead_the_counts_are_the_most_there_can_be():
    assert "at most 2 updates, 1 of them" in short_training_warning(TrainSettings(2, 1e-5), 18, at_most=True)
    assert "from at most 18 pairs" in short_training_warning(TrainSettings(2, 1e-5), 18, at_most=True)
