"""Fused models: the adapter's logits without the adapter, a few MB of memory, and nothing merged into quantised weights."""

import json
import shutil
import tracemalloc
from pathlib import Path

import golden_llava
import make_peft
import mlx.core as mx
import numpy as np
import pytest
from hf_layouts import TINY, write_hf, write_talking
from random_llava import CONFIG, random_llava, trained_llava
from safetensors.numpy import load_file, save_file

from mlx_visalign.cli.main import main
from mlx_visalign.convert import fuse as fusing
from mlx_visalign.convert.cli import main as convert
from mlx_visalign.convert.fuse import Fusion, fuse
from mlx_visalign.convert.io.source import open_source
from mlx_visalign.convert.peft import to_ours
from mlx_visalign.convert.steps.fingerprint import source_fingerprint
from mlx_visalign.convert.steps.lora_deltas import Deltas, Update
from mlx_visalign.inference.policy import load
from mlx_visalign.models.chat_template import as_jinja, stated_by
from mlx_visalign.models.loading import load_model
from mlx_visalign.models.lora import LoRASettings, adapters, save_adapter
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import PARITY, PRECISIONS

Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path):
    """The random LLaVA in float32."""
    return write_hf(tmp_path / "base", dtype=np.float32)


@pytest.fixture
def adapter(tmp_path):
    save_adapter(trained_llava(2), tmp_path / "adapter", {"method": "csr", "round": 2})
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def tiny_adapter(tmp_path_factory):
    """Of the embedded model, changing its answers."""
    policy, folder = load("tiny"), tmp_path_factory.mktemp("tiny") / "adapter"
    policy.attach(LoRASettings(rank=4), seed=0)
    for index, layer in enumerate(adapters(policy.model).values()):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
    policy.save_adapter(folder, method="test")
    return folder


def loaded(folder):
    model = load_model(folder, read_json(folder / "config.json"))
    model.set_dtype(mx.float32)
    return model


def first_row(model):
    return golden_llava.our_logits(model)[0]


def merged(name):
    """A layer of the random LLaVA with all rounds of its adapter, in float64."""
    layer = adapters(trained_llava(2))[name]
    changes = [np.array(a, np.float64) @ np.array(b, np.float64) for a, b in layer.rounds()]
    return np.array(layer.linear.weight, np.float64) + sum(changes).T


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_fused_model_has_the_adapters_logits(tmp_path, base, adapter, dtype):
    tolerance = PRECISIONS[dtype].parity
    figures = fuse(base, adapter, tmp_path / "fused", dtype)
    assert figures["merged"] == "14 layers, and 0 tensors replaced"
    on = first_row(trained_llava(2))
    difference = np.abs(first_row(loaded(tmp_path / "fused")) - on).max()
    assert difference <= tolerance and np.abs(first_row(random_llava()) - on).max() > 10 * tolerance
    assert read_json(tmp_path / "fused/config.json")["torch_dtype"] == dtype


def test_each_weight_is_rounded_once_and_others_are_kept(tmp_path, base, adapter, monkeypatch):
    monkeypatch.setattr(fusing, "AT_ONCE", 1000)  # pieces of 15 rows
    fuse(base, adapter, tmp_path / "fused")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "fused/model.safetensors")
    assert before.keys() == after.keys()
    found, exact = after[f"{Q_PROJ}.weight"], merged(Q_PROJ)
    assert (np.abs(found - exact) <= 0.501 * np.spacing(np.abs(found)).astype(np.float64)).all()
    norm = "language_model.model.norm.weight"
    np.testing.assert_array_equal(after[norm], before[norm].astype(np.float16))


def test_what_rounding_loses_of_the_update_is_said(tmp_path, base, adapter):
    shares = [
        float(fuse(base, adapter, tmp_path / dtype, dtype)["rounding"].split("lost ")[1].split("%")[0]) for dtype in DTYPES
    ]
    assert shares[0] < 0.01 < shares[1] < 0.2 * shares[2]


DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture
def faint(tmp_path, adapter):
    """The adapter with a change that float16 can hardly hold."""
    file = adapter / "adapters.safetensors"
    tensors = {name: np.array(array) for name, array in mx.load(str(file)).items()}
    save_file({name: array * (1e-4 if name.endswith("lora_b") else 1) for name, array in tensors.items()}, file)
    return adapter


def test_a_fusion_that_rounds_away_the_update_stops(tmp_path, base, faint):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as told:
        fuse(base, faint, tmp_path / "fused")
    said = str(told.value)
    assert "Rounding to float16 would lose all of what" in said and str(faint) in said
    assert all(cure in said for cure in ("--dtype float32", "keep the adapter", "--allow-rounding"))
    assert sorted(tmp_path.iterdir()) == before
    assert "lost 0.0" in fuse(base, faint, tmp_path / "whole", "float32")["rounding"]


def test_it_goes_on_where_that_is_allowed(tmp_path, base, faint, capsys):
    command = f"fuse --model {base} --adapter-path {faint} --mlx-path {tmp_path / 'fused'} --no-probe --json"
    assert main(command.split()) == 2 and "--allow-rounding" in capsys.readouterr().err
    assert main([*command.split(), "--allow-rounding"]) == 0
    rounding = json.loads(capsys.readouterr().out)["rounding"]
    assert rounding == "to float16 lost all of the update; 0 values became zero"


def test_a_tenth_is_the_bound(tmp_path, base, adapter, monkeypatch):
    monkeypatch.setattr(fusing.Fusion, "lost", fusing.MOST_LOST)
    fuse(base, adapter, tmp_path / "fused")
    monkeypatch.setattr(fusing.Fusion, "lost", fusing.MOST_LOST + 1e-6)
    with pytest.raises(UserError, match=r"would lose 10\.00%"):
        fuse(base, adapter, tmp_path / "again")


def test_a_fused_model_states_its_own_words(tmp_path, tiny_adapter, capsys):
    """Though the folder that it comes from states those of Hugging Face's copies."""
    model = shutil.copytree(TINY, tmp_path / "model")
    (model / "chat_template.jinja").write_text(as_jinja("hf", "</s>"))
    figures = fuse(model, tiny_adapter, tmp_path / "fused")
    config = read_json(tmp_path / "fused/config.json")
    assert figures["chat template"].startswith("vicuna_v1, ") and stated_by(tmp_path / "fused", config).exact == "vicuna_v1"
    assert stated_by(model, config).exact == "hf"


def test_a_fused_folder_is_whole_or_not_there(tmp_path, tiny_adapter):
    model = shutil.copytree(TINY, tmp_path / "model")
    (model / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 34055\n")
    with pytest.raises(UserError, match=rf"{tmp_path / 'fused'}: tokenizer.json is a Git LFS pointer"):
        fuse(model, tiny_adapter, tmp_path / "fused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_fused_model_that_is_quantised_is_warned_of(tmp_path, tiny_adapter, capsys):
    fuse(TINY, tiny_adapter, tmp_path / "fused")
    for name, source in (("plain", TINY), ("merged", tmp_path / "fused")):
        assert convert(["llava", "--hf-path", str(source), "--mlx-path", str(tmp_path / name), "-q"]) == 0
        warned = "rounding to 4 bits loses most of its small change" in capsys.readouterr().err
        assert warned == (name == "merged") == ("fused" in read_json(tmp_path / name / "config.json")["visalign"])


def test_only_the_new_tensor_and_a_few_mb_are_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    save_file({"w.weight": rng.normal(size=(4096, 4096)).astype("f2")}, tmp_path / "model.safetensors")
    matrices = {"a": rng.normal(size=(4096, 8)).astype("f4"), "b": rng.normal(size=(8, 4096)).astype("f4")}
    save_file(matrices, tmp_path / "matrices.safetensors")
    update = Update(open_source(tmp_path / "matrices.safetensors"), "a", "b", 1.0, turned=False)
    fusion = Fusion(open_source(tmp_path / "model.safetensors"), Deltas({}, {"w.weight": update}, {}), "F16", None)
    tracemalloc.start()
    size = fusion.produce(fusion.tensors[0]).nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 1 << 25 and peak < size + 50e6


def test_the_source_is_untouched_and_the_new_model_is_its_own_source(tmp_path, base, adapter):
    config = read_json(base / "config.json") | {"visalign": {"template": "hf", "aspect": "pad", "source_fingerprint": "x"}}
    (base / "config.json").write_text(json.dumps(config))
    before = {path: path.read_bytes() for path in base.iterdir()}
    fuse(base, adapter, tmp_path / "fused")
    assert {path: path.read_bytes() for path in base.iterdir()} == before
    ours = read_json(tmp_path / "fused/config.json")["visalign"]
    assert ours == {"template": "hf", "aspect": "pad", "method": "csr", "round": 2, "fused": True}
    assert source_fingerprint(tmp_path / "fused") != source_fingerprint(base)


def test_pefts_folder_is_fused_as_it_is(tmp_path, base):
    fuse(base, make_peft.FOLDER, tmp_path / "fused", "float32")
    np.testing.assert_allclose(first_row(loaded(tmp_path / "fused")), np.load(make_peft.LOGITS)["logits"], atol=PARITY)


def test_the_authors_projector_is_taken_over(tmp_path, base):
    figures = fuse(base, make_peft.AUTHORS, tmp_path / "fused", "float32")
    assert figures["merged"] == "14 layers, and 4 tensors replaced"
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "fused/model.safetensors")
    name = "multi_modal_projector.linear_2.weight"
    np.testing.assert_array_equal(after[name], (1.5 * before[name].astype(np.float16)).astype(np.float32))
    to_ours(make_peft.FOLDER, tmp_path / "ours")
    fuse(base, tmp_path / "ours", tmp_path / "plain", "float32")
    plain = load_file(tmp_path / "plain/model.safetensors")
    assert all(np.array_equal(after[name], plain[name]) for name in plain if "projector" not in name)


def test_layers_of_several_ranks_and_of_the_tower(tmp_path, base):
    folder = shutil.copytree(make_peft.FOLDER, tmp_path / "peft")
    tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 64)).astype("f4"), rng.normal(size=(64, 8)).astype("f4")
    tensors = load_file(folder / "adapter_model.safetensors") | {f"{tower}.lora_A.weight": a, f"{tower}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = read_json(folder / "adapter_config.json") | {"rank_pattern": {".*vision_tower.*": 8}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    fuse(base, folder, tmp_path / "fused", "float32")
    name = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "fused/model.safetensors")
    np.testing.assert_allclose(after[name], before[name] + (8 / 8) * b @ a, atol=1e-5)


def test_the_probe_says_how_near_the_fused_model_is(tmp_path, tiny_adapter, capsys):
    command = ["fuse", "--model", "tiny", "--adapter-path", tiny_adapter, "--mlx-path", tmp_path / "fused"]
    assert main([*map(str, command), "--json"]) == 0
    words = json.loads(capsys.readouterr().out)["probe"].split()
    assert words[:5] == ["fused", "model", "changes", "logits", "by"] and "adapter-on" in words
    assert 0 < float(words[5]) < 0.01 and float(words[-1].rstrip(")")) > 0.1
    assert load(tmp_path / "fused").answer(picture(), "Describe this image in detail.")


def picture():
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB")


def quantised(tmp_path) -> Path:
    output = tmp_path / "quantised"
    options = ["--mlx-path", str(output), "-q", "--q-group-size", "32"]
    assert convert(["llava", "--hf-path", str(TINY), *options]) == 0
    return output


def test_nothing_is_merged_into_quantised_weights(tmp_path, tiny_adapter, capsys):
    model, output = quantised(tmp_path), tmp_path / "fused"
    capsys.readouterr()
    command = ["fuse", "--model", str(model), "--adapter-path", str(tiny_adapter), "--mlx-path", str(output)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "3.4 % of their norm" in said and "3.5 times" in said and "--dequantize" in said and not output.exists()
    assert main([*command, "--dequantize", "--json"]) == 0
    assert 0 < float(json.loads(capsys.readouterr().out)["probe"].split()[5]) < 0.1
    assert "quantization" not in read_json(output / "config.json")
    assert not any(name.endswith(".scales") for name in load_file(output / "model.safetensors"))


def test_the_dequantised_weights_are_those_that_were_computed_with(tmp_path, tiny_adapter):
    model = quantised(tmp_path)
    fuse(model, tiny_adapter, tmp_path / "fused", "float32", dequantize=True)
    layer = load_model(model, read_json(model / "config.json")).language_model.lm_head
    expected = mx.dequantize(layer.weight, layer.scales.astype(mx.float32), layer.biases.astype(mx.float32), 32, 4)
    found = load_file(tmp_path / "fused/model.safetensors")["language_model.lm_head.weight"]
    np.testing.assert_array_equal(found, np.array(expected))


def test_a_conversion_has_the_fingerprint_of_its_unconverted_source(tmp_path):
    assert source_fingerprint(quantised(tmp_path)) == source_fingerprint(TINY)


def test_an_adapter_of_another_model_is_refused(tmp_path, tiny_adapter):
    base = write_talking(tmp_path / "base")
    with pytest.raises(UserError, match="trained on another model"):
        fuse(base, tiny_adapter, tmp_path / "fused")


def damaged(folder, change):
    """Change the tensors of an adapter of ours, and its keys with them."""
    file = folder / "adapters.safetensors"
    tensors = change({name: np.array(array) for name, array in mx.load(str(file)).items()})
    save_file(tensors, file)
    config = read_json(folder / "adapter_config.json")
    config["lora_parameters"]["keys"] = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    (folder / "adapter_config.json").write_text(json.dumps(config))


CHANGES = {
    "nan": (lambda tensors: {name: np.full_like(array, np.nan) for name, array in tensors.items()}, "not finite"),
    "renamed": (
        lambda tensors: {name.replace("q_proj", "k"): array for name, array in tensors.items()},
        "Did you mean '.*proj",
    ),
    "other shape": (lambda tensors: {name: np.ones((9, 9), "f4") for name in tensors}, r"the adapter expects \(9, 9\)"),
    "other rank": (lambda tensors: {name: np.ones((64, 64), "f4") for name in tensors}, "of rank 9"),
    "half a pair": (lambda tensors: {name: tensors[name] for name in tensors if name.endswith("a")}, "lora_a and lora_b"),
    "too large": (lambda tensors: {name: 1e4 * array for name, array in tensors.items()}, "--dtype float32"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path, base, adapter, name):
    change, message = CHANGES[name]
    damaged(adapter, change)
    with pytest.raises(UserError, match=message):
        fuse(base, adapter, tmp_path / "fused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_another_quantisation_is_refused(tmp_path, base, adapter):
    (base / "config.json").write_text(json.dumps(CONFIG | {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}))
    with pytest.raises(UserError, match="affine"):
        fuse(base, adapter, tmp_path / "fused", dequantize=True)
