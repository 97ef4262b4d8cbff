import pytest

from mlx_visalign.data.records import Pair, Prompt
from mlx_visalign.training.pair_filters import even_lengths, warn_if_few


def test_lengths_are_evened_by_dropping_the_furthest_off():
    gaps = [0, 9, 1, -1, 8, 0]
    assert even_lengths(gaps, 0.5) == [0, 2, 3, 5]
    assert even_lengths([-gap for gap in gaps], 0.5) == [0, 2, 3, 5]
    assert even_lengths(gaps, 10.0) == list(range(6))
    assert even_lengths([5, 5], 0.5) == [] and even_lengths([], 0.5) == []


@pytest.mark.parametrize(("images", "warned"), [(25, False), (26, True)])
def test_few_pairs_are_worth_a_word(capsys, images, warned):
    pairs = [Pair(f"{index}", (f"{index % 5}.png",), "What?", "A dog.", "A cat.") for index in range(10)]
    prompts = [
        Prompt(f"{kind}{index}", f"{index}.png", "What?", kind) for index in range(images) for kind in ("describe", "exists")
    ]
    warn_if_few(pairs, prompts, "Distort more.")
    words = (
        f"warning: only 5 of {images} images gave a pair (10 pairs in total), which is little to learn from. Distort more.\n"
    )
    assert capsys.readouterr().err == (words if warned else "")
