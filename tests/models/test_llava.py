"""The bridge to mlx-vlm against transformers: logits for any rows and images, and the gradients of a DPO step."""

from pathlib import Path

import make_llava
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden_llava import GOLDEN, assert_logits, our_logits
from mlx.utils import tree_flatten
from random_llava import CONFIG, IMAGE, random_llava

from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.logprobs import sum_logps, token_logps
from mlx_visalign.models import families
from mlx_visalign.models.decoder import decoder_of, merge
from mlx_visalign.models.loading import load_model, quantize_language_model
from mlx_visalign.models.lora import LoRASettings, adapter_at, adapters, attach
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import PARITY


def our_dpo(model) -> dict[str, np.ndarray]:
    """make_llava.PAIR through the prefix cache, policy and reference (adapter off)."""
    attach(model, LoRASettings(rank=4, scale=2.0), mx.random.key(0))
    for name, layer in adapters(model).items():
        a, b = make_llava.lora_weights(name, layer.lora_a.shape[0], layer.lora_b.shape[1])
        layer.lora_a, layer.lora_b = mx.array(a), mx.array(b)
    ids, mask = prefix_cache.right_pad([make_llava.PAIR[0]])
    responses, response_mask = prefix_cache.right_pad(list(make_llava.PAIR[1:]))
    features = families.of(model).features(model, mx.array(make_llava.pixels(1)))
    decoder = decoder_of(model)

    def margin():
        embeds = merge(decoder.embed(ids), ids, IMAGE, families.of(model).project(model, features))
        branches = prefix_cache.prefill(decoder, embeds, mask).branch(2)
        states, _ = prefix_cache.extend(decoder, branches, responses, response_mask)
        states = mx.concatenate([branches.state[:, None], states], axis=1)
        padded = mx.concatenate([mx.zeros_like(responses[:, :1]), responses], axis=1)
        logps = sum_logps(token_logps(states, padded, decoder.head), mx.array(response_mask))
        return logps[0] - logps[1]

    with adapter_at(model, 0):
        reference = margin()
    loss, grads = nn.value_and_grad(model, lambda: -nn.log_sigmoid(make_llava.BETA * (margin() - reference)))()
    return {"loss": np.array(loss)} | {name: np.array(value) for name, value in tree_flatten(grads)}


def assert_dpo(found, expected):
    assert found.keys() == expected.keys() and len(expected) == 1 + 2 * 7 * 2
    assert abs(found["loss"] - np.log(2)) > 0.01  # the adapter matters
    for name, theirs in expected.items():
        scale = np.abs(theirs).max()
        assert scale > 0 and np.abs(found[name] - theirs).max() <= PARITY * scale, name


def test_logits_equal_transformers():
    """Three rows in one batch, one of them with two images, rope_theta 500 from rope_parameters."""
    assert_logits(our_logits(random_llava()), [GOLDEN[f"logits{row}"] for row in range(3)])


def test_dpo_gradients_equal_peft():
    golden = {name.removeprefix("dpo."): GOLDEN[name] for name in GOLDEN.files if name.startswith("dpo.")}
    assert_dpo(our_dpo(random_llava()), golden)


@pytest.mark.reference
def test_logits_equal_transformers_live():
    assert_logits(our_logits(random_llava()), make_llava.logits())


@pytest.mark.reference
def test_dpo_gradients_equal_peft_live():
    assert_dpo(our_dpo(random_llava()), make_llava.peft_dpo())


def test_merge_refuses_a_wrong_number_of_image_tokens():
    ids = mx.array([[1, IMAGE, IMAGE, 5]])
    with pytest.raises(UserError, match="2 image tokens for 1 images of 4 features"):
        merge(mx.zeros((1, 4, 8)), ids, IMAGE, mx.zeros((1, 4, 8)))


def save_folder(folder: Path, rename=lambda name: name, metadata="mlx", config=CONFIG):
    import json

    weights = {rename(name): array for name, array in tree_flatten(random_llava().parameters())}
    if metadata == "pt":
        weights = {name: array.transpose(0, 3, 1, 2) if array.ndim == 4 else array for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": metadata})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("metadata", ["mlx", "pt"])
def test_loads_mlx_and_hugging_face_convolutions(tmp_path, metadata):
    save_folder(tmp_path, metadata=metadata)
    for (name, ours), (_, theirs) in zip(
        tree_flatten(load_model(tmp_path, CONFIG).parameters()), tree_flatten(random_llava().parameters()), strict=True
    ):
        assert mx.array_equal(ours, theirs), name


def test_names_that_do_not_fit_are_listed(tmp_path):
    save_folder(tmp_path, rename=lambda name: name.replace("vision_model.", ""))
    with pytest.raises(
        UserError, match=r"(?s)tensors are missing:.*vision_tower\.vision_model.* unexpected:\n(  .*\n){20}  and \d+ more\n"
    ):
        load_model(tmp_path, CONFIG)


def test_damaged_weights_are_named(tmp_path):
    save_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        load_model(tmp_path, CONFIG)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_an_incomplete_config_is_named(part):
    with pytest.raises(UserError, match=part):
        families.build_model({name: value for name, value in CONFIG.items() if name != part})


def test_a_model_folders_python_is_never_run(tmp_path):
    (tmp_path / "arch.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_folder(tmp_path, config=CONFIG | {"model_file": "arch.py"})
    load_model(tmp_path, read_json(tmp_path / "config.json"))
    assert not (tmp_path / "ran").exists()


def test_other_model_types_are_refused():
    with pytest.raises(UserError, match="model_type 'llava'"):
        families.build_model(CONFIG | {"model_type": "qwen2_vl"})


@pytest.mark.parametrize(("bits", "layers"), [(4, 16), (8, 16)])
def test_quantised_folder_loads(tmp_path, bits, layers):
    """2 x 7 linears, the embedding and the head; tower and projector stay as they are."""
    import json

    model = random_llava()
    assert quantize_language_model(model, bits, 32) == layers
    mx.save_safetensors(str(tmp_path / "m.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"})
    config = CONFIG | {"quantization": {"bits": bits, "group_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path, config)
    kinds = [type(layer) for _, layer in loaded.named_modules() if hasattr(layer, "bits")]
    assert len(kinds) == layers
    np.testing.assert_array_equal(our_logits(loaded)[0], our_logits(model)[0])
