"""Memory saved by the prefix cache, by MLX's own meter: peak above the weights in one pair's forward and backward pass."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from random_llava import random_llava

from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.logprobs import sum_logps, token_logps
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.lora import LoRASettings, attach

# A small model's proportions: 31 words a width, where logits weigh much. At LLaVA-1.5-7B's 7.8 the prefix cache takes 0.56 of
# plain without checkpointing, the same share that it takes of the tokens.
PREFIX, RESPONSE, VOCABULARY = 320, 60, 4000


@pytest.fixture(scope="module")
def model():
    model = random_llava(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    attach(model, LoRASettings(rank=8), mx.random.key(0))
    return model


@pytest.fixture(scope="module")
def rows():
    words = lambda count, seed: mx.random.randint(4, VOCABULARY, (count,), key=mx.random.key(seed)).tolist()  # noqa: E731
    return words(PREFIX, 0), [words(RESPONSE, 1), words(RESPONSE, 2)]


def plain(model, rows):
    """Two whole sequences with logits at every position: what TRL and mlx-vlm do."""
    prefix, responses = rows
    ids = mx.array([prefix + response for response in responses])
    logits = model.language_model(ids, mask=None).logits
    counts = mx.broadcast_to(mx.arange(1, ids.shape[1]) >= PREFIX, (2, ids.shape[1] - 1))
    return sum_logps(token_logps(logits, ids), counts)


def cached(model, rows, checkpoint):
    prefix, responses = rows
    decoder = decoder_of(model)
    ids, mask = prefix_cache.right_pad([prefix])
    branches = prefix_cache.prefill(decoder, decoder.embed(ids), mask, checkpoint).branch(2)
    ids, mask = prefix_cache.right_pad(responses)
    states, _ = prefix_cache.extend(decoder, branches, ids, mask, checkpoint)
    states = mx.concatenate([branches.state[:, None], states], axis=1)
    ids = mx.concatenate([mx.zeros_like(ids[:, :1]), ids], axis=1)
    return sum_logps(token_logps(states, ids, decoder.head), mx.array(mask))


def peak(model, forward):
    """Bytes above what is there before, at the highest moment of a step."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    loss, grads = nn.value_and_grad(model, lambda: -nn.log_sigmoid(forward() @ mx.array([0.1, -0.1])))()
    mx.eval(loss, grads)
    return mx.get_peak_memory() - before


def test_prefix_cache_takes_half_and_a_fifth_with_checkpointing(model, rows):
    whole = peak(model, lambda: plain(model, rows))
    kept = peak(model, lambda: cached(model, rows, checkpoint=False))
    recomputed = peak(model, lambda: cached(model, rows, checkpoint=True))
    print(f"plain {whole / 2**20:.0f} MiB, prefix cache {kept / whole:.2f}, with checkpointing {recomputed / whole:.2f}")
    assert kept <= 0.5 * whole
    assert recomputed <= 0.2 * whole
