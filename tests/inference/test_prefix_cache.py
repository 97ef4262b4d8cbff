"""The prefix cache against full forward passes: same log-probabilities, same gradients, less memory."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_llava import IMAGE, IMAGE_TOKENS, prompt, random_llava

from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.logprobs import sum_logps, token_logps
from mlx_visalign.models import families
from mlx_visalign.models.decoder import Positions, decoder_of, merge
from mlx_visalign.models.lora import LoRASettings, adapters, attach
from mlx_visalign.utils.tolerances import PRECISIONS

PROMPTS = [prompt([7, 8], [9, 10, 11]), prompt([12], [13]), prompt([20, 21, 22], [23, 24, 25, 26])]
RESPONSES = [[[30, 31, 32, 33, 34, 2], [40, 41, 2]], [[50, 2], [51, 52, 53, 2]], [[60, 61, 2], [62, 63, 2]]]
FLOAT32 = PRECISIONS["float32"].least


@pytest.fixture
def model():
    return random_llava()


@pytest.fixture
def features():
    return mx.random.normal((3, IMAGE_TOKENS, 64), key=mx.random.key(1))


def embed(model, features, prompts):
    ids, mask = prefix_cache.right_pad(prompts)
    embeds = merge(model.language_model.model.embed_tokens(ids), ids, IMAGE, families.of(model).project(model, features))
    return embeds, mask


def cached(model, features, prompts=PROMPTS, responses=RESPONSES, checkpoint=False):
    decoder = decoder_of(model)
    prefix = prefix_cache.prefill(decoder, *embed(model, features, prompts), checkpoint)
    branches = prefix.branch(len(responses[0]))
    ids, mask = prefix_cache.right_pad([ids for row in responses for ids in row])
    states, _ = prefix_cache.extend(decoder, branches, ids, mask, checkpoint)
    states = mx.concatenate([branches.state[:, None], states], axis=1)
    ids = mx.concatenate([mx.zeros_like(ids[:, :1]), ids], axis=1)
    return sum_logps(token_logps(states, ids, decoder.head), mx.array(mask))


def plain(model, features):
    """Every answer by itself, unpadded, through mlx-vlm's own causal forward with all logits."""
    sums = []
    for row, (ids, answers) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for answer in answers:
            whole = mx.array([ids + answer])
            embeds = merge(
                model.language_model.model.embed_tokens(whole),
                whole,
                IMAGE,
                families.of(model).project(model, features[row : row + 1]),
            )
            logits = model.language_model(whole, inputs_embeds=embeds, mask=None).logits
            counts = mx.arange(1, whole.shape[1])[None] >= len(ids)
            sums.append(sum_logps(token_logps(logits, whole), counts))
    return mx.concatenate(sums)


def trainable(model):
    attach(model, LoRASettings(rank=4), mx.random.key(2))
    for index, layer in enumerate(adapters(model).values()):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(10 + index))


def gradient(model, forward):
    weights = mx.array([1.0, -2.0, 0.5, 1.5, -1.0, 2.0])
    _, grads = nn.value_and_grad(model, lambda: (forward() * weights).sum())()
    return dict(tree_flatten(grads))


def assert_same_gradients(one, other, tolerance):
    assert one.keys() == other.keys() and len(one) == 2 * 7 * 2
    for name in one:
        scale = mx.abs(other[name]).max().item()
        assert scale > 0, name
        assert mx.abs(one[name] - other[name]).max().item() <= tolerance * scale, name


def test_fold_equals_plain(model, features):
    np.testing.assert_allclose(cached(model, features), plain(model, features), atol=FLOAT32)


def test_fold_gradients_equal_plain(model, features):
    trainable(model)
    assert_same_gradients(
        gradient(model, lambda: cached(model, features)), gradient(model, lambda: plain(model, features)), 1e-5
    )


def test_layer_checkpointing_changes_nothing(model, features):
    """The trap: a cache that records keys and values by side effect gives the right loss and a wrong gradient here."""
    trainable(model)
    np.testing.assert_array_equal(cached(model, features, checkpoint=True), cached(model, features))
    assert_same_gradients(
        gradient(model, lambda: cached(model, features, checkpoint=True)),
        gradient(model, lambda: cached(model, features)),
        1e-5,
    )


def test_padding_and_batching_change_nothing(model, features):
    together = cached(model, features)
    for row in range(3):
        alone = cached(model, features[row : row + 1], PROMPTS[row : row + 1], RESPONSES[row : row + 1])
        np.testing.assert_allclose(alone, together[2 * row : 2 * row + 2], atol=FLOAT32)


def test_is_causal(model, features):
    """Changing the last token moves no earlier log-probability."""
    decoder = decoder_of(model)
    branches = prefix_cache.prefill(decoder, *embed(model, features, PROMPTS)).branch(1)
    ids, mask = prefix_cache.right_pad([[30, 31, 32, 33]] * 3)
    changed = mx.concatenate([ids[:, :-1], ids[:, -1:] + 5], axis=1)
    one, other = (prefix_cache.extend(decoder, branches, x, mask)[0] for x in (ids, changed))
    np.testing.assert_array_equal(one[:, :-1], other[:, :-1])
    assert mx.abs(one[:, -1] - other[:, -1]).max().item() > 0.01


def test_reading_in_pieces_equals_reading_at_once(model, features):
    """extend twice, with rows of different lengths in between, is extend once."""
    decoder = decoder_of(model)
    branches = prefix_cache.prefill(decoder, *embed(model, features, PROMPTS)).branch(2)
    first = [[30, 31], [32], [33, 34, 35], [36], [37, 38], [39]]
    second = [[40], [41, 42], [43], [44, 45], [46], [47, 48]]
    _, longer = prefix_cache.extend(decoder, branches, *prefix_cache.right_pad(first))
    pieces, _ = prefix_cache.extend(decoder, longer, *prefix_cache.right_pad(second))
    whole, _ = prefix_cache.extend(
        decoder, branches, *prefix_cache.right_pad([a + b for a, b in zip(first, second, strict=True)])
    )
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        np.testing.assert_allclose(pieces[row, : len(b)], whole[row, len(a) : len(a) + len(b)], atol=1e-5)


def test_rows_out_of_their_prompts_order_are_refused(model, features):
    branches = prefix_cache.prefill(decoder_of(model), *embed(model, features, PROMPTS)).branch(2)
    assert branches.pick(np.array([0, 0, 3, 5])).counts == [2, 1, 1]
    with pytest.raises(ValueError, match="order of their prompts"):
        branches.pick(np.array([5, 0]))


# -- positions that are not the number of tokens before ----------------------------------------------------------------

SECTIONS = [0, 0, 1, 1, 1, 2, 2, 2]  # which of a position's axes each frequency turns by, as in m-RoPE


def by_axes(attention, x, positions):
    """Rotary positions by their formula: of each token, [b, p] or [3, b, p], or counted from an offset by MLX."""
    if isinstance(positions, int) or positions.ndim == 1:
        return attention.rope(x, offset=positions)
    frequencies = attention.rope.base ** (-mx.arange(8) / 8)
    axes = mx.broadcast_to(positions, (3, *positions.shape[-2:]))
    angles = axes[mx.array(SECTIONS)].transpose(1, 2, 0)[:, None] * frequencies
    one, other = mx.split(x, 2, axis=-1)
    cos, sin = mx.cos(angles), mx.sin(angles)
    return mx.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def of_grid(ids, length):
    """Positions of m-RoPE [3, length]: the image's 2 x 2 tokens stand at one time in rows and columns; then it goes on."""
    at = ids.index(IMAGE)
    grid = [[at] * 4, [at, at, at + 1, at + 1], [at, at + 1, at, at + 1]]
    rest = list(range(at + 2, at + 2 + length - at - 4))
    return [[*range(at), *axis, *rest] for axis in grid]


def test_positions_may_be_given(model, features):
    """0, 1, 2, ... said token by token, and from 7 on, for RoPE is relative: both as if nothing was said."""
    embeds, mask = embed(model, features, PROMPTS)
    answers, answer_mask = prefix_cache.right_pad([row[0] for row in RESPONSES])
    states = []
    for start in (None, 0, 7):
        decoder = replace(decoder_of(model), rotate=by_axes)
        tokens = mx.broadcast_to(mx.arange(mask.shape[1]), mask.shape)
        given = None if start is None else Positions(start + tokens, start + mask.sum(axis=1))
        prefix = prefix_cache.prefill(decoder, embeds, mask, positions=given)
        read, _ = prefix_cache.extend(decoder, prefix.branch(1), answers, answer_mask)
        states.append(np.array(mx.concatenate([prefix.state[:, None], read], axis=1)))
    real = np.pad(answer_mask, ((0, 0), (1, 0)), constant_values=True)
    for other in states[1:]:
        np.testing.assert_allclose(other[real], states[0][real], atol=1e-5)


def test_continuations_go_on_where_the_positions_say(model, features):
    """As in m-RoPE: an answer after the prompt is the same as one whole prompt with the answer in it, token by token."""
    decoder = replace(decoder_of(model), rotate=by_axes)
    prompts, answer = PROMPTS[:2], [30, 31, 32]

    def read(rows):
        embeds, mask = embed(model, features[:2], rows)
        tokens = mx.array([of_grid(row, mask.shape[1]) for row in rows]).transpose(1, 0, 2)
        following = np.array([len(row) - 2 for row in rows])  # four image tokens take two positions
        return prefix_cache.prefill(decoder, embeds, mask, positions=Positions(tokens, following))

    ids = mx.array([answer] * 2)
    states, _ = prefix_cache.extend(decoder, read(prompts).branch(1), ids, np.ones(ids.shape, dtype=bool))
    for count in range(1, len(answer) + 1):
        whole = read([prompt + answer[:count] for prompt in prompts]).state
        np.testing.assert_allclose(states[:, count - 1], whole, atol=1e-5)

    # Counting tokens instead gives something else.
    counted = replace(read(prompts), positions=None)
    wrong, _ = prefix_cache.extend(decoder, counted.branch(1), ids, np.ones(ids.shape, dtype=bool))
    assert np.abs(np.array(wrong - states)).max() > 0.01
