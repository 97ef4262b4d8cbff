"""The memory that is told beforehand, against MLX's own meter on models with random weights.

In a process of its own: the meter counts whatever other tests keep.
"""

import json

import mlx.core as mx
import pytest
from measured_peaks import SHAPES, around, made, make, nothing_else, peak, policy_of, prompts
from mlx.utils import tree_flatten
from random_llava import IMAGE_TOKENS

from mlx_visalign.inference.policy import TINY
from mlx_visalign.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.preflight import memory as footprint
from mlx_visalign.preflight.memory import Setting, read_shape
from mlx_visalign.training.config import TrainSettings
from mlx_visalign.training.dpo import PairBatch, PreferenceSettings, preference_loss
from mlx_visalign.training.trainer import fit

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures(nothing_else.__name__)]


DPO, MDPO = (PreferenceSettings(loss_type=name) for name in ("sigmoid", "mdpo"))


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


def measured_training(model, setting, folder, monkeypatch, train=DPO):
    policy = policy_of(model)
    features = mx.random.normal((setting.batch, IMAGE_TOKENS, 64))
    monkeypatch.setattr(policy, "image_features", lambda paths: features)
    policy.attach(LoRASettings(setting.rank), seed=0)
    policy.checkpoint = setting.checkpoint
    n = setting.batch
    answers = [[[8] * setting.answer, [9] * setting.answer]] * n
    logps = dict.fromkeys(train.loss.names, -1.0)
    batch = PairBatch(["a"] * n, ["a"] * n, prompts(n, setting.prompt), answers, [logps] * n, [0.0] * n)
    with peak() as highest:
        fit({"adapter": model}, preference_loss(policy, train), Same(batch), TrainSettings(2, 1e-4), folder)
    return highest()


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", SHAPES)
def test_training_peaks_as_told(name, checkpoint, tmp_path, monkeypatch):
    shape, model, setting = made(name, checkpoint=checkpoint)
    around(footprint.training_bytes(shape, setting), measured_training(model, setting, tmp_path, monkeypatch))


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", ["plain", "deep", "words", "bfloat16", "4-bit"])
def test_a_training_that_reads_the_prompt_twice_peaks_as_told(name, checkpoint, tmp_path, monkeypatch):
    """mDPO: three answers, the third about another image. To 20 %, for the figures were fitted to DPO and PPO."""
    shape, model, setting = made(name, checkpoint=checkpoint, copies=3, prefills=2)
    monkeypatch.setattr(PairBatch, "pictures", lambda batch, variant: batch.images)
    found = measured_training(model, setting, tmp_path, monkeypatch, MDPO)
    assert footprint.training_bytes(shape, setting) / found == pytest.approx(1, abs=0.2)


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


def test_a_clip_as_told():
    """The tower that LLaVA sees through is not there twice."""
    vision = VisionConfig(64, 128, 3, 4, image_size=28, patch_size=14)
    config = CLIPConfig(TextConfig(32, 64, 2, 4, vocab_size=90), vision, 16)
    shape = footprint.shape_of(make())  # whose tower has three blocks like these, and uses two of them
    clip = CLIP(config)
    assert footprint.clip_bytes(shape, config, shares=False) == bytes_of(clip)
    clip.vision_model.encoder.layers = clip.vision_model.encoder.layers[2:]
    assert footprint.clip_bytes(shape, config, shares=True) == bytes_of(clip)
    other = CLIPConfig(config.text, VisionConfig(64, 128, 3, 4, image_size=56, patch_size=14), 16)
    assert footprint.clip_bytes(shape, other, shares=True) == bytes_of(CLIP(other))


def bytes_of(module):
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))
