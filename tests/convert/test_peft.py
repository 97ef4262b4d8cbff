"""PEFT's adapters: the same logits here as there, every bit back after a round trip, and refusals in one sentence."""

import json
import shutil
from pathlib import Path

import golden_llava
import make_llava
import make_peft
import mlx.core as mx
import numpy as np
import pytest
from random_llava import random_llava, trained_llava
from safetensors.numpy import load_file, save_file

from mlx_visalign.convert.cli import main
from mlx_visalign.convert.layouts.peft_folder import read_non_lora, read_peft
from mlx_visalign.convert.peft import to_ours, to_peft
from mlx_visalign.inference.policy import TINY
from mlx_visalign.models.adapter_files import fingerprint, read_adapter
from mlx_visalign.models.lora import adapters, bind, save_adapter
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import PARITY

PEFT, AUTHORS = make_peft.FOLDER, make_peft.AUTHORS
Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def with_adapter(folder):
    """The random LLaVA with an adapter folder of ours on."""
    model = random_llava()
    config, layers = read_adapter(folder)
    bind(model, folder, layers, whole="keys" not in config["lora_parameters"])
    return model


def first_row(model) -> np.ndarray:
    """Our logits where make_peft.logits has PEFT's."""
    return golden_llava.our_logits(model)[0]


def bits(file: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(file).items()}


def copied(tmp_path, change_config=None, change_tensors=None, source=PEFT) -> Path:
    """A copy of the golden folder with a changed config or changed tensors."""
    folder = shutil.copytree(source, tmp_path / "peft")
    if change_config is not None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change_config))
    if change_tensors is not None:
        save_file(change_tensors(load_file(PEFT / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_of_pefts_gives_pefts_logits(tmp_path):
    figures = to_ours(PEFT, tmp_path / "ours")
    assert (figures["layers"], figures["tensors"], figures["rank"], figures["scale"]) == (14, 28, 4, 2.0)
    np.testing.assert_allclose(first_row(with_adapter(tmp_path / "ours")), np.load(make_peft.LOGITS)["logits"], atol=PARITY)
    assert np.abs(first_row(random_llava()) - np.load(make_peft.LOGITS)["logits"]).max() > 0.1


def test_pefts_bits_come_back(tmp_path):
    to_ours(PEFT, tmp_path / "ours")
    to_peft(tmp_path / "ours", tmp_path / "back")
    assert (tmp_path / "back/adapter_model.safetensors").read_bytes() == (PEFT / "adapter_model.safetensors").read_bytes()
    assert read_json(tmp_path / "back/adapter_config.json") == read_json(PEFT / "adapter_config.json")


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_the_bits_of_half_precision_come_back(tmp_path, kind):
    folder = copied(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = {name: array.astype({"F16": mx.float16, "BF16": mx.bfloat16}[kind]) for name, array in mx.load(str(file)).items()}
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors, {"format": "pt"})
    to_ours(folder, tmp_path / "ours")
    to_peft(tmp_path / "ours", tmp_path / "back")
    back = mx.load(str(tmp_path / "back/adapter_model.safetensors"))
    assert back.keys() == tensors.keys()
    assert all(array.dtype == tensors[name].dtype and mx.array_equal(array, tensors[name]) for name, array in back.items())


@pytest.mark.parametrize("rounds", [1, 3])
def test_our_bits_and_words_come_back(tmp_path, rounds):
    save_adapter(trained_llava(rounds), tmp_path / "ours", {"method": "csr", "round": rounds, "template": "vicuna_v1"})
    to_peft(tmp_path / "ours", tmp_path / "peft")
    to_ours(tmp_path / "peft", tmp_path / "back")
    config, before = (read_json(tmp_path / name / "adapter_config.json") for name in ("back", "ours"))
    assert {name: value for name, value in config.items() if name != "peft"} == before
    assert bits(tmp_path / "back/adapters.safetensors") == bits(tmp_path / "ours/adapters.safetensors")


def test_three_rounds_are_one_lora_for_peft(tmp_path):
    save_adapter(trained_llava(3), tmp_path / "ours", {})
    to_peft(tmp_path / "ours", tmp_path / "peft", "classic")
    adapter = read_peft(tmp_path / "peft")
    assert (adapter.config["r"], adapter.config["lora_alpha"]) == (15, 15)
    assert "language_model.model.layers.0.self_attn.q_proj" in adapter.layers
    assert all(layer.scale == 1 for layer in adapter.layers.values())


PREFIXES = {"nested": "model.language_model.layers.", "classic": "language_model.model.layers.", "original": "model.layers."}


@pytest.mark.parametrize("layout", PREFIXES)
def test_every_layout_of_names_means_the_same(tmp_path, layout):
    def renamed(tensors):
        return {name.replace(PREFIXES["nested"], PREFIXES[layout]): array for name, array in tensors.items()}

    folder = copied(tmp_path, change_tensors=renamed)
    to_ours(folder, tmp_path / "ours")
    to_ours(PEFT, tmp_path / "plain")
    assert bits(tmp_path / "ours/adapters.safetensors") == bits(tmp_path / "plain/adapters.safetensors")
    to_peft(tmp_path / "ours", tmp_path / "back")
    assert bits(tmp_path / "back/adapter_model.safetensors") == bits(folder / "adapter_model.safetensors")


def test_mlx_vlm_loads_an_imported_adapter_with_pefts_logits(tmp_path):
    from mlx_vlm.trainer import apply_lora_layers

    to_ours(PEFT, tmp_path / "ours")
    theirs = apply_lora_layers(random_llava(), str(tmp_path / "ours"))
    np.testing.assert_allclose(first_row(theirs), np.load(make_peft.LOGITS)["logits"], atol=PARITY)


def test_rank_stabilised_scale(tmp_path):
    to_ours(copied(tmp_path, {"use_rslora": True, "lora_alpha": 6}), tmp_path / "ours")
    assert read_json(tmp_path / "ours/adapter_config.json")["lora_parameters"]["scale"] == 6 / 2  # the square root of 4


def test_the_model_it_was_trained_on_is_written_down(tmp_path):
    to_ours(PEFT, tmp_path / "ours", TINY)
    config = read_json(tmp_path / "ours/adapter_config.json")
    assert config["base_fingerprint"] == fingerprint(TINY) and config["template"] == "vicuna_v1" and config["aspect"] == "pad"
    to_peft(tmp_path / "ours", tmp_path / "peft")
    to_ours(tmp_path / "peft", tmp_path / "again")
    assert read_json(tmp_path / "again/adapter_config.json") == config


def tower(tensors, b):
    """The tensors, and a layer of the vision tower as a suffix like q_proj brings it in."""
    path = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    return tensors | {f"{path}.lora_A.weight": np.ones((4, 64), "f4"), f"{path}.lora_B.weight": np.full((64, 4), b, "f4")}


def test_vision_layers_are_left_out_only_where_they_do_nothing(tmp_path):
    figures = to_ours(copied(tmp_path / "idle", change_tensors=lambda tensors: tower(tensors, 0)), tmp_path / "ours")
    assert figures["layers"] == 14 and "1 layers elsewhere whose B is zero" in figures["left out"]
    with pytest.raises(UserError, match=r"1 adapted layers are not in the language model.*visalign fuse"):
        to_ours(copied(tmp_path / "busy", change_tensors=lambda tensors: tower(tensors, 1)), tmp_path / "refused")


def test_a_projector_beside_the_adapter_is_read_and_never_lost(tmp_path):
    beside = read_non_lora(AUTHORS)
    assert beside.read("model.mm_projector.0.weight").shape == (64, 64) and len(beside.tensors) == 4
    with pytest.raises(UserError, match=r"4 tensors that were trained in full.*llava_original.*fuse"):
        to_ours(AUTHORS, tmp_path / "ours")
    assert read_non_lora(PEFT) is None


def test_the_authors_torch_file_is_the_same_adapter(tmp_path):
    folder = copied(tmp_path, source=AUTHORS)
    (folder / "non_lora_trainables.bin").unlink()
    to_ours(folder, tmp_path / "ours")
    to_ours(PEFT, tmp_path / "plain")
    assert bits(tmp_path / "ours/adapters.safetensors") == bits(tmp_path / "plain/adapters.safetensors")


CONFIGS = {
    "dora": ({"use_dora": True}, "use_dora.*DoRA"),
    "biases": ({"bias": "all"}, "biases were trained"),
    "modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save.*whole modules"),
    "tokens": ({"trainable_token_indices": [5]}, "embeddings were trained"),
    "alphas": ({"alpha_pattern": {"q_proj": 16}}, "different scales"),
    "pissa": ({"init_lora_weights": "pissa"}, "changes the base's own weights"),
    "something new": ({"use_whatever": {"a": 1}}, "use_whatever.*not supported"),
    "another method": ({"peft_type": "IA3"}, "expected peft_type 'LORA'"),
    "absurd rank": ({"r": 10**9}, "matrices of rank 4, adapter_config.json says r = 1000000000"),
    "no rank": ({"r": 0}, "at least 1"),
    "text as rank": ({"r": "4"}, "r must be a whole number"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha must be a number"),
    "layer without tensors": ({"target_modules": ["q_proj", "lm_head"]}, "no tensors for lm_head"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_more_than_a_lora_is_refused(tmp_path, name):
    change, message = CONFIGS[name]
    with pytest.raises(UserError, match=message):
        to_ours(copied(tmp_path, change), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def without(*endings):
    return lambda tensors: {name: array for name, array in tensors.items() if not name.endswith(endings)}


def replaced(name, array):
    return lambda tensors: tensors | {name: array}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): array for name, array in tensors.items()}


TENSORS = {
    "nan": (replaced(f"{Q_PROJ}.lora_A.weight", np.full((4, 64), np.nan, "f4")), "not finite"),
    "half a pair": (without("layers.0.self_attn.q_proj.lora_B.weight"), "q_proj has lora_A but no lora_B"),
    "a layer less": (
        without("layers.0.mlp.up_proj.lora_A.weight", "layers.0.mlp.up_proj.lora_B.weight"),
        "layers.0.mlp.up_proj",
    ),
    "a block less": (renamed("layers.0.", "layers.2."), "no tensors for .*layers.0"),
    "another name": (renamed("q_proj", "query"), "no tensors for q_proj, which"),
    "a slip": (renamed("gate_proj", "gate_prj"), "Did you mean 'mlp.gate_proj'"),
    "an embedding": (
        replaced("base_model.model.model.embed_tokens.weight", np.ones((8, 64), "f4")),
        "1 tensors are not lora_A",
    ),
    "a magnitude": (replaced(f"{Q_PROJ}.lora_magnitude_vector", np.ones(64, "f4")), "1 tensors are not lora_A"),
    "a convolution": (replaced(f"{Q_PROJ}.lora_A.weight", np.ones((4, 3, 14, 14), "f4")), r"expected \(r, in\)"),
    "whole numbers": (replaced(f"{Q_PROJ}.lora_A.weight", np.ones((4, 64), "i4")), "expected floats"),
    "no outer prefix": (renamed("base_model.model.", ""), "28 tensors are not lora_A"),
    "empty": (lambda tensors: {}, "0 tensors are not lora_A"),
    "huge index": (renamed("layers.1.", f"layers.{10**9}."), r"no tensors for .*layers\.1\."),
}


@pytest.mark.parametrize("name", TENSORS)
def test_damaged_tensors_are_named(tmp_path, name):
    change, message = TENSORS[name]
    folder = copied(tmp_path, {"target_modules": ["q_proj"]}, change)
    with pytest.raises(UserError, match=message):
        to_ours(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_layers_of_several_ranks_are_for_fuse(tmp_path):
    wide = {f"{Q_PROJ}.lora_A.weight": np.ones((8, 64), "f4"), f"{Q_PROJ}.lora_B.weight": np.ones((64, 8), "f4")}
    folder = copied(tmp_path, {"rank_pattern": {"layers.0.self_attn.q_proj": 8}}, lambda tensors: tensors | wide)
    with pytest.raises(UserError, match=r"ranks from 4 to 8.*visalign fuse"):
        to_ours(folder, tmp_path / "ours")


def test_a_pattern_that_would_hang_is_never_run(tmp_path):
    to_ours(copied(tmp_path, {"target_modules": r"(.*)*(a|a)*(\w+\s?)*!"}), tmp_path / "ours")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path, file):
    folder = copied(tmp_path)
    (folder / file).unlink()
    with pytest.raises(UserError, match=str(folder)):
        read_peft(folder)


def test_an_adapter_with_columns_scaled_is_not_ours(tmp_path):
    save_adapter(trained_llava(1), tmp_path / "dora", {})
    file = tmp_path / "dora/adapters.safetensors"
    tensors = {name: np.array(array) for name, array in mx.load(str(file)).items()}
    save_file(tensors | {"language_model.model.layers.0.self_attn.q_proj.m": np.ones(64, "f4")}, file)
    with pytest.raises(UserError, match=r"unknown tensors: .*q_proj.m"):
        to_peft(tmp_path / "dora", tmp_path / "peft")


def test_the_command_finds_the_direction(tmp_path, capsys):
    assert main(["peft", "--adapter-path", str(PEFT), "--output", str(tmp_path / "ours"), "--dry-run"]) == 0
    assert not (tmp_path / "ours").exists()
    assert main(["peft", "--adapter-path", str(PEFT), "--output", str(tmp_path / "ours")]) == 0
    assert main(["peft", "--adapter-path", str(tmp_path / "ours"), "--output", str(tmp_path / "peft"), "--json"]) == 0
    assert "28 of 28 tensors equal the source's" in capsys.readouterr().out
    assert main(["peft", "--adapter-path", str(PEFT), "--output", str(tmp_path / "peft")]) == 2
    assert "already exists" in capsys.readouterr().err


# -- with PEFT itself ----------------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"target_modules": ["q_proj", "v_proj"]},  # brings in the vision tower, whose B stays zero
        {"target_modules": r".*language_model\.layers\.1\..*(o|up)_proj"},
    ],
    ids=["all linears", "rank-stabilised", "suffixes", "some layers"],
)
def test_pefts_logits_and_bits(tmp_path, settings):
    theirs = make_peft.adapted(only="language_model", **settings)
    theirs.save_pretrained(tmp_path / "peft")
    to_ours(tmp_path / "peft", tmp_path / "ours")
    np.testing.assert_allclose(first_row(with_adapter(tmp_path / "ours")), make_peft.logits(theirs), atol=PARITY)
    to_peft(tmp_path / "ours", tmp_path / "back")
    before, after = (bits(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "back"))
    assert after == {name: value for name, value in before.items() if "vision_tower" not in name}
    assert read_json(tmp_path / "back/adapter_config.json") == read_json(tmp_path / "peft/adapter_config.json")


@pytest.mark.reference
def test_peft_loads_three_rounds_of_ours_with_our_logits(tmp_path):
    from peft import PeftModel

    model = trained_llava(3)
    save_adapter(model, tmp_path / "ours", {"method": "csr"})
    to_peft(tmp_path / "ours", tmp_path / "peft")
    theirs = PeftModel.from_pretrained(make_llava.transformers_model(), tmp_path / "peft")
    adapted = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == len(adapters(model)) == 14 and not any("vision" in name for name in adapted)
    # PEFT in float64: its own rounding of three adapters differs from CPU to CPU, and adds to ours.
    np.testing.assert_allclose(first_row(model), make_peft.logits(theirs.double().eval()), atol=PARITY)


@pytest.mark.reference
def test_the_golden_logits_are_pefts():
    np.testing.assert_allclose(make_peft.logits(make_peft.adapted()), np.load(make_peft.LOGITS)["logits"], atol=PARITY)
