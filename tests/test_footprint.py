"""The memory that is told beforehand, against MLX's own meter on models with random weights.

In a process of its own: the meter counts whatever other tests keep.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from random_llava import CONFIG, IMAGE_TOKENS, random_llava

from mlx_visalign import footprint, vlm
from mlx_visalign.footprint import Setting, Shape, read_shape
from mlx_visalign.generate import Sampling
from mlx_visalign.images import Preprocessing
from mlx_visalign.lora import LoRASettings
from mlx_visalign.policy import TINY, Policy
from mlx_visalign.preference import PairBatch, preference_loss
from mlx_visalign.train import TrainSettings, fit

pytestmark = pytest.mark.alone
WITHIN = 0.15
LLAVA_7B = Shape(4096, 11008, 32, 32, 32, 32064, 576, 1_181_696, matrices=6_738_935_808, others=324_000_000)


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
        vlm.quantize_language_model(model, bits, 64)
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


class Same:
    """A source that gives one batch for ever."""

    def __init__(self, batch):
        self.batch = batch

    def next(self) -> PairBatch:
        return self.batch

    def observe(self, metrics): ...
    def state(self):
        return {}

    def restore(self, state): ...


@contextmanager
def peak():
    """Gives what asks for the bytes at the highest moment since."""
    mx.clear_cache()
    mx.reset_peak_memory()
    yield mx.get_peak_memory


def measured_training(model, setting, folder, monkeypatch):
    policy = policy_of(model)
    features = mx.random.normal((setting.batch, IMAGE_TOKENS, 64))
    monkeypatch.setattr(policy, "image_features", lambda paths: features)
    policy.attach(LoRASettings(setting.rank), seed=0)
    policy.checkpoint = setting.checkpoint
    n = setting.batch
    answers = [[[8] * setting.answer, [9] * setting.answer]] * n
    batch = PairBatch(["a"] * n, ["a"] * n, prompts(n, setting.prompt), answers, [(-1.0, -2.0)] * n, [0.0] * n)
    with peak() as highest:
        fit({"adapter": model}, preference_loss(policy, 0.1), Same(batch), TrainSettings(2, 1e-4), folder)
    return highest()


def around(found, expected):
    assert abs(found / expected - 1) <= WITHIN, f"told {found / 1e6:.1f} MB, measured {expected / 1e6:.1f} MB"


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    """Other tests' models would be counted."""
    mx.clear_cache()
    before = mx.get_active_memory()
    assert before < 2e6, before
    yield


SHAPES = {  # the model's sizes and the setting
    "plain": ({}, {"prompt": 160, "answer": 40}),
    "grouped": ({"kv_heads": 2, "inner": 128}, {"prompt": 160, "answer": 30}),
    "deep": ({"layers": 7}, {"prompt": 70, "answer": 50, "batch": 2}),
    "wide": ({"width": 256, "inner": 688, "layers": 2}, {"prompt": 120, "answer": 50}),
    "words": ({"vocabulary": 6000}, {"prompt": 60, "answer": 100}),
    "rank": ({}, {"prompt": 100, "answer": 30, "rank": 128}),
    "bfloat16": ({"dtype": mx.bfloat16, "layers": 2}, {"prompt": 100, "answer": 30, "number": 2, "bits": 16}),
    "4-bit": (
        {"dtype": mx.bfloat16, "bits": 4, "width": 64, "inner": 128, "layers": 2},
        {"prompt": 60, "answer": 20, "number": 2, "bits": 4},
    ),
}


def made(name, **more):
    sizes, setting = SHAPES[name]
    shape = footprint.shape_of(make(**{**sizes, "bits": None}))
    return shape, make(**sizes), Setting(**({"bits": 32, "number": 4} | setting | more))


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", SHAPES)
def test_training_peaks_as_told(name, checkpoint, tmp_path, monkeypatch):
    shape, model, setting = made(name, checkpoint=checkpoint)
    around(footprint.training_bytes(shape, setting), measured_training(model, setting, tmp_path, monkeypatch))


@pytest.mark.parametrize("name", SHAPES)
def test_sampling_peaks_as_told(name):
    answers = 6
    shape, model, setting = made(name, answers=answers, rank=1, answer=16)
    policy = policy_of(model)
    features = mx.random.normal((answers, IMAGE_TOKENS, 64))
    keys = [mx.random.key(i) for i in range(answers)]
    with peak() as highest:
        prefix = policy.prefill(features, prompts(answers, setting.prompt))
        policy.generate(prefix, Sampling(setting.answer, 0.7, 0.9), keys)
    around(footprint.sampling_bytes(shape, setting), highest())


@pytest.mark.parametrize("bits", [None, 4])
def test_weights_as_told(bits):
    model = make(width=128, bits=bits, dtype=mx.bfloat16)
    told = footprint.weights_bytes(footprint.shape_of(make(width=128)), Setting(bits=bits or 16))
    assert told == pytest.approx(sum(array.nbytes for _, array in tree_flatten(model.parameters())), rel=0.001)


def test_adapter_as_told():
    model = make(kv_heads=2)
    policy_of(model).attach(LoRASettings(rank=3), seed=0)
    found = sum(array.nbytes for _, array in tree_flatten(model.trainable_parameters()))
    assert footprint.adapter_bytes(footprint.shape_of(make(kv_heads=2)), 3) == found


def test_only_the_config_is_read(tmp_path):
    """A folder without weights has a shape, and nothing of their size is in memory for it."""
    config = json.loads((TINY / "config.json").read_text())
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    config["text_config"] |= text | {"num_key_value_heads": 32, "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with peak() as highest:
        shape, bits, number = read_shape(tmp_path)
    assert (shape.layers, shape.width, bits, number) == (32, 4096, 16, 2)
    assert shape.matrices == 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 32064 * 4096
    assert highest() < 10e6


def test_flops_of_a_pair_at_7b():
    """Counted from the exported graph: 24.1 TFLOP at 636 + 120/120 tokens, rank 16."""
    told = footprint.pair_flops(LLAVA_7B, Setting(prompt=636, answer=120))
    assert told / 1e12 == pytest.approx(24.1, rel=0.05)
