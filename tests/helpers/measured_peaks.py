"""Small models of any size, and MLX's own meter. For tests marked `alone`: the meter counts whatever other tests keep."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest
from random_llava import CONFIG, IMAGE_TOKENS, random_llava

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference.policy import Policy
from mlx_visalign.models.loading import quantize_language_model
from mlx_visalign.preflight import memory as footprint
from mlx_visalign.preflight.memory import Setting, Shape

WITHIN = 0.15
LLAVA_7B = Shape(4096, 11008, 32, 32, 32, 32064, 576, 1_181_696, 6_738_935_808, 324_000_000, (1024, 4096, 336, 14, 23))
SHAPES = {  # the model's sizes and the setting
    "plain": ({}, {"prompt": 160, "answer": 40}),
    "grouped": ({"kv_heads": 2, "inner": 128}, {"prompt": 160, "answer": 30}),
    "deep": ({"layers": 7}, {"prompt": 70, "answer": 50, "batch": 2}),
    "wide": ({"width": 256, "inner": 688, "layers": 2}, {"prompt": 120, "answer": 50}),
    "grouped, deep": ({"kv_heads": 2, "layers": 8}, {"prompt": 100, "answer": 30}),
    "words": ({"vocabulary": 6000}, {"prompt": 60, "answer": 100}),
    "rank": ({}, {"prompt": 100, "answer": 30, "rank": 128}),
    "bfloat16": ({"dtype": mx.bfloat16, "layers": 2}, {"prompt": 100, "answer": 30, "number": 2, "bits": 16}),
    "4-bit": (
        {"dtype": mx.bfloat16, "bits": 4, "width": 64, "inner": 128, "layers": 2},
        {"prompt": 60, "answer": 20, "number": 2, "bits": 4},
    ),
    "4-bit, float32": ({"bits": 4, "width": 128}, {"prompt": 100, "answer": 20, "bits": 4}),
}


def made(name, **more):
    """A shape, a model that has it, and the setting."""
    sizes, setting = SHAPES[name]
    shape = footprint.shape_of(make(**{**sizes, "bits": None}))
    return shape, make(**sizes), Setting(**({"bits": 32, "number": 4} | setting | more))


def make(layers=4, width=96, inner=256, heads=4, kv_heads=4, vocabulary=1000, dtype=mx.float32, bits=None):
    model = random_llava(
        config=CONFIG,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
    )
    if bits is not None:
        quantize_language_model(model, bits, 64)
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


class Words:
    """A tokenizer for answers that nobody reads."""

    eos_token_id = -1

    def batch_decode(self, rows, skip_special_tokens):
        return [""] * len(rows)


def policy_of(model):
    return Policy(model, Words(), Preprocessing(28, (0.5,) * 3, (0.5,) * 3, "pad"), "vicuna_v1", "random", 0.0)


def prompts(count, length):
    return [[1, *[CONFIG["image_token_index"]] * IMAGE_TOKENS, *[7] * (length - IMAGE_TOKENS - 1)]] * count


@contextmanager
def peak():
    """Gives what asks for the bytes at the highest moment since."""
    mx.clear_cache()
    mx.reset_peak_memory()
    yield mx.get_peak_memory


def around(found, expected):
    assert abs(found / expected - 1) <= WITHIN, f"told {found / 1e6:.1f} MB, measured {expected / 1e6:.1f} MB"


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    """Other tests' models would be counted."""
    gc.collect()  # sources of batches hold themselves
    mx.clear_cache()
    before = mx.get_active_memory()
    assert before < 2e6, before
    yield
