"""The embedded model: what is shipped is what was frozen, it sees, and mlx-vlm loads it with an adapter of ours.

A second base, from another seed of the same recipe, lies in tests/second_base: what holds for one must hold for it too.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_visalign.evaluation.runner import Protocol, evaluate
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.models.lora import LoRASettings, adapters
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.utils.arguments import DESCRIBE

BASES = [TINY, Path(__file__).parents[1] / "second_base" / "llava"]


@pytest.fixture(params=BASES, ids=["embedded", "second"])
def base(request):
    """A base's folder, and what is recorded of it."""
    return request.param, json.loads((request.param.parent / "base.json").read_text())


def test_the_base_is_the_frozen_one(base):
    """Never retrained for a method's sake: its fingerprint stands beside it."""
    folder, recorded = base
    assert load(str(folder)).base == recorded["llava"]["fingerprint"]


def test_the_base_hallucinates_as_recorded(base):
    """A sample of the validation scenes lies near the figures recorded for all of them."""
    folder, recorded = base
    figures = evaluate(load(str(folder)), world_benchmark("validation", 40), Protocol(max_tokens=96), batch=30).figures
    for group, name in (("chair", "chair_i"), ("chair", "recall"), ("pope_adversarial", "accuracy")):
        found = figures[group][name]
        assert found.low - 0.03 <= recorded["validation"][group][name] <= found.high + 0.03, name


def test_mlx_vlm_loads_the_tiny_model_and_an_adapter_with_our_logits(tmp_path):
    import mlx_vlm

    ours = load("tiny")
    ours.attach(LoRASettings(rank=4), seed=0)
    for index, layer in enumerate(adapters(ours.model).values()):
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    ours.save_adapter(tmp_path, method="test")
    theirs, _ = mlx_vlm.load(str(TINY), adapter_path=str(tmp_path))
    theirs.set_dtype(mx.float32)
    ids = mx.array([ours.prompt_ids(DESCRIBE)])
    pixels = ours.pixels(Image.fromarray(draw(scene(0))))[None]
    expected = theirs(ids, pixels.transpose(0, 3, 1, 2), mask=None).logits[0, -1]
    prefix = ours.prefill(ours.features(pixels), [ids[0].tolist()])
    found = ours.model.language_model.lm_head(prefix.state)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    plain = load("tiny")
    without = plain.model.language_model.lm_head(plain.prefill(plain.features(pixels), [ids[0].tolist()]).state)[0]
    assert mx.abs(found - without).max().item() > 0.1
