"""Our forward of a block against mlx-vlm's own: the same values and gradients, and less is kept."""

from functools import reduce

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_llava import random_llava
from random_onevision import CONFIG as ONEVISION

from mlx_visalign.models.attention import causal_attention
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.decoder_block import run_block
from mlx_visalign.models.lora import LoRASettings, adapters, attach
from mlx_visalign.utils.tolerances import PARITY

BLOCKS = {"llama": random_llava, "qwen2": lambda: random_llava(config=ONEVISION)}
LENGTH = 12


@pytest.fixture(params=BLOCKS)
def block(request):
    """A block with an adapter that does something."""
    model = BLOCKS[request.param]()
    attach(model, LoRASettings(rank=4), mx.random.key(2))
    for index, layer in enumerate(adapters(model).values()):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(10 + index))
    return decoder_of(model).layers[0]


def states(length=LENGTH, rows=2):
    return mx.random.normal((rows, length, 64), key=mx.random.key(1))


def ours(block, x):
    return run_block(block, x, 0, causal_attention)


def theirs(block, x):
    return block(x, "causal", None)


def gradients(block, forward, x):
    """Of the adapter and of what goes in."""
    weights = mx.random.normal(x.shape, key=mx.random.key(3))

    def loss(parameters, x):
        block.update(parameters)
        return (forward(block, x) * weights).sum()

    own, of_x = mx.grad(loss, argnums=(0, 1))(block.trainable_parameters(), x)
    return dict(tree_flatten(own)) | {"x": of_x}


def test_a_block_equals_mlx_vlms(block):
    np.testing.assert_allclose(ours(block, states())[0], theirs(block, states()), atol=PARITY)


def test_its_gradients_too(block):
    found, expected = (gradients(block, forward, states()) for forward in (lambda *a: ours(*a)[0], theirs))
    assert found.keys() == expected.keys() and len(found) == 2 * 7 + 1
    for name, array in expected.items():
        scale = mx.abs(array).max().item()
        assert scale > 0, name
        np.testing.assert_allclose(found[name] / scale, array / scale, atol=PARITY, err_msg=name)


def test_less_is_kept(block):
    """Twelve blocks on top of each other, of which each keeps what its backward pass needs."""
    x, peaks = states(200), {}
    for name, forward in (("ours", lambda *a: ours(*a)[0]), ("theirs", theirs)):

        def twelve(block, x, forward=forward):
            return reduce(lambda y, _: forward(block, y), range(12), x)

        mx.eval(gradients(block, twelve, x))
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(gradients(block, twelve, x))
        peaks[name] = mx.get_peak_memory() - before
    assert peaks["ours"] < 0.6 * peaks["theirs"], peaks
