"""Sampling: batched equals sequential, branches equal single runs, and eight forks do not hold eight prefixes."""

import mlx.core as mx
import numpy as np
import pytest
from random_llava import IMAGE, IMAGE_TOKENS, prompt, random_llava

from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.sampling import Sampling, _draw, sample
from mlx_visalign.models import families
from mlx_visalign.models.decoder import decoder_of, merge
from mlx_visalign.utils.errors import UserError

PROMPTS = [prompt([7, 8], [9, 10, 11]), prompt([12], [13]), prompt([20, 21, 22], [23, 24, 25, 26])]
END = 2


@pytest.fixture(scope="module")
def model():
    return random_llava()


@pytest.fixture(scope="module")
def features():
    return mx.random.normal((3, IMAGE_TOKENS, 64), key=mx.random.key(1))


def read(model, features, prompts):
    ids, mask = prefix_cache.right_pad(prompts)
    decoder = decoder_of(model)
    return prefix_cache.prefill(
        decoder, merge(decoder.embed(ids), ids, IMAGE, families.of(model).project(model, features)), mask
    )


def run(model, features, prompts, sampling, keys=None, copies=1):
    branches = read(model, features, prompts).branch(copies)
    return sample(decoder_of(model), branches, branches.state, END, sampling, keys)


def naive_greedy(model, feature, ids, steps):
    """One full forward a token, nothing kept, through mlx-vlm's own causal forward."""
    out = []
    while len(out) < steps and END not in out:
        embed = model.language_model.model.embed_tokens
        whole = mx.array([ids + out])  # a random model may answer with the image token, which then is a token like any
        start = merge(embed(whole[:, : len(ids)]), whole[:, : len(ids)], IMAGE, families.of(model).project(model, feature))
        embeds = mx.concatenate([start, embed(whole[:, len(ids) :])], axis=1)
        out.append(int(mx.argmax(model.language_model(whole, inputs_embeds=embeds, mask=None).logits[0, -1])))
    return out


def test_greedy_equals_full_forwards(model, features):
    batch = run(model, features, PROMPTS, Sampling(max_tokens=12))
    assert batch == [naive_greedy(model, features[row : row + 1], ids, 12) for row, ids in enumerate(PROMPTS)]


@pytest.mark.parametrize("sampling", [Sampling(12), Sampling(12, temperature=1.0), Sampling(12, temperature=1.5, top_p=0.8)])
def test_batched_equals_sequential(model, features, sampling):
    keys = [mx.random.key(seed) for seed in range(6)]
    batch = run(model, features, PROMPTS, sampling, keys, copies=2)
    for row in range(3):
        for copy in range(2):
            alone = run(model, features[row : row + 1], PROMPTS[row : row + 1], sampling, [keys[2 * row + copy]])
            assert alone == [batch[2 * row + copy]]
    if sampling.temperature:
        assert batch[0] != batch[1]


def test_end_token_is_kept_and_ends_the_answer(model, features):
    rows = run(model, features, PROMPTS * 1, Sampling(60, temperature=2.0), [mx.random.key(5 + i) for i in range(24)], copies=8)
    ended = [row for row in rows if END in row]
    assert ended and all(row.index(END) == len(row) - 1 for row in ended)
    assert all(len(row) == 60 for row in rows if END not in row)


def test_draws_follow_the_distribution():
    logits = mx.log(mx.array([[0.5, 0.1, 0.3, 0.1]]))
    uniform = (mx.arange(4000) + 0.5) / 4000
    tokens = np.array(_draw(mx.repeat(logits, 4000, axis=0), uniform, Sampling(temperature=1.0)))
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, [0.5, 0.1, 0.3, 0.1], atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = mx.log(mx.array([[0.5, 0.1, 0.3, 0.1]]))
    uniform = (mx.arange(4000) + 0.5) / 4000
    tokens = np.array(_draw(mx.repeat(logits, 4000, axis=0), uniform, Sampling(temperature=1.0, top_p=0.7)))
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, [0.625, 0, 0.375, 0], atol=1e-3)


def test_forks_do_not_hold_copies_of_the_prefix():
    """Eight branches of a long prefix. Only one layer's expansion exists at a time; eight kept copies would be 8."""
    model = random_llava(num_hidden_layers=8)
    features = mx.random.normal((1, IMAGE_TOKENS, 64), key=mx.random.key(1))
    prefix = read(model, features, [prompt(list(range(4, 90)) * 8, [9])])
    mx.eval(prefix.state, [array for pair in prefix.kv for array in pair])
    size = sum(array.nbytes for pair in prefix.kv for array in pair)
    branches = prefix.branch(8)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    sample(decoder_of(model), branches, branches.state, END, Sampling(4))
    assert (mx.get_peak_memory() - before) / size < 3


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_bad_settings_are_refused(bad):
    [(name, value)] = bad.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; it must be [^.]*\\.$"):
        Sampling(**bad)
