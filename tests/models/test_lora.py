"""Adapters: fresh changes nothing, off is the base, rounds concatenate, folders travel to mlx-vlm and back."""

import json
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_llava import CONFIG, IMAGE, IMAGE_TOKENS, fill, prompt, random_llava, trained_llava

from mlx_visalign.models import families
from mlx_visalign.models.adapter_files import read_adapter
from mlx_visalign.models.decoder import merge
from mlx_visalign.models.loading import quantize_language_model
from mlx_visalign.models.lora import LoRASettings, adapter_at, adapters, attach, save_adapter
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import PARITY

IDS = mx.array([prompt([7, 8], [9, 10, 30, 31])])


def logits(model):
    features = mx.random.normal((1, IMAGE_TOKENS, 64), key=mx.random.key(1))
    embeds = merge(model.language_model.model.embed_tokens(IDS), IDS, IMAGE, families.of(model).project(model, features))
    return model.language_model(IDS, inputs_embeds=embeds, mask=None).logits


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains():
    model, base = random_llava(), logits(random_llava())
    attach(model, LoRASettings(rank=4), mx.random.key(0))
    assert mx.array_equal(logits(model), base)
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith("language_model.model.layers.") and name.endswith(("lora_a", "lora_b")) for name in names)


def test_a_is_drawn_from_its_key_in_bounds():
    one, other = random_llava(), random_llava()
    attach(one, LoRASettings(rank=4), mx.random.key(0))
    attach(other, LoRASettings(rank=4), mx.random.key(0))
    for name, layer in adapters(one).items():
        assert mx.array_equal(layer.lora_a, adapters(other)[name].lora_a)
        assert mx.abs(layer.lora_a).max().item() <= layer.lora_a.shape[0] ** -0.5
        assert layer.lora_a.dtype == mx.float32


def test_off_is_the_base_and_each_round_is_the_one_before():
    base, one, two = logits(random_llava()), trained_llava(1), trained_llava(2)
    with adapter_at(two, 0):
        assert mx.array_equal(logits(two), base)
    with adapter_at(two, 1):
        np.testing.assert_allclose(logits(two), logits(one), atol=PARITY)
    assert mx.abs(logits(two) - logits(one)).max().item() > 0.1


def test_earlier_rounds_are_frozen():
    names = [name for name, _ in tree_flatten(trained_llava(2).trainable_parameters())]
    assert len(names) == 2 * 7 * 2 and not any("past" in name for name in names)


@pytest.mark.parametrize("rounds", [1, 3])
def test_mlx_vlm_loads_our_adapter_with_our_logits(tmp_path, rounds):
    from mlx_vlm.trainer import apply_lora_layers

    model = trained_llava(rounds)
    save_adapter(model, tmp_path, {"method": "test"})
    theirs = apply_lora_layers(random_llava(), str(tmp_path))
    np.testing.assert_allclose(logits(theirs), logits(model), atol=PARITY)
    assert mx.abs(logits(theirs) - logits(random_llava())).max().item() > 0.1


def test_a_folder_remembers_its_rounds(tmp_path):
    model = trained_llava(2)
    save_adapter(model, tmp_path, {"method": "test"})
    config, slices = read_adapter(tmp_path)
    assert config["method"] == "test" and config["round_ranks"] == [4, 5]
    for name, layer in adapters(model).items():
        for (a, b), (ours_a, ours_b) in zip(slices[name], layer.rounds(), strict=True):
            assert mx.array_equal(a, ours_a) and mx.array_equal(b, ours_b)


PARAMETERS = {"rank": 4, "scale": 1.0}
BAD_CONFIGS = {
    "not_json": "{",
    "no_lora": {"fine_tune_type": "full"},
    "no_scale": {"lora_parameters": {"rank": 4}},
    "text_scale": {"lora_parameters": PARAMETERS | {"scale": "big"}},
    "list": {"lora_parameters": [4, 1.0]},
    "other_rank": {"lora_parameters": PARAMETERS | {"rank": 7}},
    "ranks_that_do_not_add_up": {"lora_parameters": PARAMETERS, "round_ranks": [7]},
    "negative_rank": {"lora_parameters": PARAMETERS, "round_ranks": [8, -4]},
    "text_ranks": {"lora_parameters": PARAMETERS, "round_ranks": "4"},
    "other_layers": {"lora_parameters": PARAMETERS | {"keys": ["language_model.model.layers.0.self_attn.q_proj"]}},
    "text_keys": {"lora_parameters": PARAMETERS | {"keys": "q_proj"}},
}


@pytest.mark.parametrize("damage", BAD_CONFIGS)
def test_a_damaged_config_is_named(tmp_path, damage):
    save_adapter(trained_llava(1), tmp_path, {})
    bad = BAD_CONFIGS[damage]
    (tmp_path / "adapter_config.json").write_text(bad if isinstance(bad, str) else json.dumps(bad))
    with pytest.raises(UserError, match=str(tmp_path)):
        read_adapter(tmp_path)


def nan_in(tensors):
    return {name: mx.where(mx.arange(array.shape[1]) == 0, mx.nan, array) for name, array in tensors.items()}


BAD_WEIGHTS = {
    "flat": lambda tensors: {name: array.flatten() for name, array in tensors.items()},
    "whole_numbers": lambda tensors: {name: array.astype(mx.int32) for name, array in tensors.items()},
    "nan": nan_in,
    "half_a_pair": lambda tensors: {name: array for name, array in tensors.items() if name.endswith("lora_a")},
    "empty": lambda tensors: {},
}


@pytest.mark.parametrize("damage", ["missing", "truncated", *BAD_WEIGHTS])
def test_damaged_weights_are_named(tmp_path, damage):
    save_adapter(trained_llava(1), tmp_path, {})
    file = tmp_path / "adapters.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        tensors = BAD_WEIGHTS[damage](mx.load(str(file)))
        mx.eval(tensors)
        mx.save_safetensors(str(file), tensors)
    with pytest.raises(UserError, match=str(tmp_path)):
        read_adapter(tmp_path)


def test_a_bfloat16_adapter_is_read(tmp_path):
    save_adapter(trained_llava(1), tmp_path, {})
    file = tmp_path / "adapters.safetensors"
    tensors = {name: array.astype(mx.bfloat16) for name, array in mx.load(str(file)).items()}
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors)
    _, slices = read_adapter(tmp_path)
    assert all(a.dtype == b.dtype == mx.float32 for rounds in slices.values() for a, b in rounds)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": -1}, {"scale": 0.0}, {"scale": float("nan")}])
def test_bad_settings_are_refused(bad):
    [(name, value)] = bad.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; it must be [^.]*\\.$"):
        LoRASettings(**bad)


@pytest.mark.parametrize("bits", [4, 8])
def test_trains_on_a_quantised_base(bits):
    import mlx.nn as nn

    model = random_llava()
    assert quantize_language_model(model, bits, 32) == 16
    attach(model, LoRASettings(rank=4), mx.random.key(0))
    fill(model, 0)
    _, grads = nn.value_and_grad(model, lambda: logits(model).sum())()
    grads = tree_flatten(grads)
    assert len(grads) == 28 and all(mx.isfinite(g).all() and mx.abs(g).max() > 0 and g.dtype == mx.float32 for _, g in grads)


def test_a_model_without_the_expected_layers_is_refused():
    class Empty:
        config = SimpleNamespace(model_type="llava")

        def freeze(self):
            pass

        def named_modules(self):
            return []

    with pytest.raises(UserError, match="linear layers"):
        attach(Empty(), LoRASettings(), mx.random.key(0))


def test_config_is_what_mlx_vlm_expects(tmp_path):
    save_adapter(trained_llava(1), tmp_path, {})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora" and config["num_layers"] == -1
    assert config["lora_parameters"]["rank"] == 4 and config["lora_parameters"]["scale"] == 1.0
    layers = CONFIG["text_config"]["num_hidden_layers"]
    assert len(config["lora_parameters"]["keys"]) == 7 * layers
    assert "language_model.model.layers.0.self_attn.q_proj" in config["lora_parameters"]["keys"]


def test_a_second_round_learns():
    """Of the first round's frozen matrices nothing is in the way of the gradients."""
    import mlx.nn as nn

    model = random_llava()
    for seed in (0, 1):
        attach(model, LoRASettings(rank=4), mx.random.key(seed))
        fill(model, seed)
    _, grads = nn.value_and_grad(model, lambda: logits(model).sum())()
    assert all(mx.abs(gradient).max() > 0 for _, gradient in tree_flatten(grads))
    assert len(tree_flatten(grads)) == 28
