"""Attention against MLX's own, for rows that share a prompt and heads that share keys."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.models.attention import BLOCK, attention, causal_attention

SCALE, WIDTH, TOLERANCE = 0.3, 8, 1e-6


def drawn(*shape, seed):
    return mx.random.normal((*shape, WIDTH), key=mx.random.key(seed))


def plain(queries, keys, values, seen):
    """The textbook's, with a head of keys and values for each of the queries'."""
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(np.array(array), repeats, axis=1) for array in (keys, values))
    scores = np.where(seen, SCALE * np.array(queries) @ keys.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ values


@pytest.mark.parametrize("length", [1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_in_blocks_as_at_once(length):
    queries, keys, values = drawn(2, 4, length, seed=0), drawn(2, 2, length, seed=1), drawn(2, 2, length, seed=2)
    found = causal_attention(SCALE, queries, keys, values)
    expected = plain(queries, keys, values, np.tril(np.ones((length, length), dtype=bool)))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("counts", [[1, 1], [3, 3], [1, 4], [0, 2]], ids=str)
@pytest.mark.parametrize("length", [1, 5])
def test_rows_share_their_prompt(counts, length):
    """Two prompts, the second one shorter; the rows of each continue it, some of their own tokens are padding."""
    rows, prompt, own = sum(counts), 7, 4
    owners = np.repeat([0, 1], counts)
    queries, keys, values = (drawn(rows, heads, length, seed=heads) for heads in (4, 2, 2))
    prompts = [drawn(2, 2, prompt, seed=seed) for seed in (5, 6)]
    owns = [drawn(rows, 2, own, seed=seed) for seed in (7, 8)]
    in_prompt = np.arange(prompt) < np.array([[7], [5]])
    in_own = np.arange(own) < 1 + np.arange(rows)[:, None] % own
    causal = np.tril(np.ones((length, length), dtype=bool))
    masks = [mx.array(in_prompt[owners][:, None, None]), mx.array(in_own[:, None, None]), mx.array(causal)]
    found = attention(counts, masks, SCALE, queries, keys, values, *prompts, *owns)
    whole = [
        mx.concatenate([one[mx.array(owners)], other, new], axis=2)
        for one, other, new in zip(prompts, owns, (keys, values), strict=True)
    ]
    past = np.concatenate([in_prompt[owners], in_own], axis=1)[:, None, None]
    seen = np.concatenate(
        [np.broadcast_to(past, (rows, 1, length, prompt + own)), np.broadcast_to(causal, (rows, 1, length, length))], axis=-1
    )
    np.testing.assert_allclose(found, plain(queries, *whole, seen), atol=TOLERANCE)


def test_nothing_of_a_prompt_is_copied():
    """Eight rows look at a prompt whose keys and values are far larger than all else."""
    queries, keys, values = (drawn(8, 2, 1, seed=seed) for seed in (0, 1, 2))
    prompt = [drawn(1, 2, 50_000, seed=seed) for seed in (3, 4)]
    mx.eval(queries, keys, values, prompt)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(attention([8], [None, None], SCALE, queries, keys, values, *prompt))
    scores = 8 * 2 * 50_000 * 4
    assert mx.get_peak_memory() - before < 6 * scores < 8 * prompt[0].nbytes
