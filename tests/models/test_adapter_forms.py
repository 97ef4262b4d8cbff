"""Adapters that others wrote: read where they are exact, else the command that converts them is named."""

import json
import re
import shlex
from pathlib import Path

import golden_llava
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from random_llava import random_llava
from safetensors.numpy import load_file, save_file

from mlx_visalign.cli.main import main
from mlx_visalign.convert.cli import main as convert
from mlx_visalign.convert.layouts.peft_folder import read_peft
from mlx_visalign.convert.peft import from_older, to_peft
from mlx_visalign.convert.steps.lora_deltas import read_deltas
from mlx_visalign.models.adapter_files import is_whole, read_adapter
from mlx_visalign.models.lora import bind
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import PARITY

RANK, SCALE = 4, 2.5
INNER = ("self_attn.q_proj", "mlp.down_proj")
WIDTHS = {"self_attn.q_proj": (64, 64), "mlp.down_proj": (128, 64)}


def drawn(layers, names=("lora_a", "lora_b")):
    """Matrices for layers by their names in a file."""
    rng, tensors = np.random.default_rng(0), {}
    for layer in layers:
        wide, out = WIDTHS[layer.split(".", layer.count(".") - 1)[-1]]
        tensors[f"{layer}.{names[0]}"] = 0.2 * rng.standard_normal((wide, RANK)).astype(np.float32)
        tensors[f"{layer}.{names[1]}"] = 0.2 * rng.standard_normal((RANK, out)).astype(np.float32)
    return tensors


def written(folder, tensors, config):
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def mlx_lm(folder, blocks=(1,), **changes):
    """As mlx-lm writes an adapter of the last blocks of a language model alone."""
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": list(INNER)} | changes.pop("lora_parameters", {})
    parameters = {name: value for name, value in parameters.items() if value is not None}
    config = {"fine_tune_type": "lora", "num_layers": len(blocks), "lora_parameters": parameters, "model": "vicuna"} | changes
    return written(folder, drawn([f"model.layers.{block}.{name}" for block in blocks for name in INNER]), config)


def merged(tensors, scale, ends=("lora_a", "lora_b")):
    """The random LLaVA's logits with the products added to its weights."""
    model = random_llava()
    layers = dict(model.named_modules())
    for name in {name.rpartition(".")[0] for name in tensors}:
        a, b = (tensors[f"{name}.{end}"] for end in ends)
        layer = layers[name if name.startswith("language_model.") else f"language_model.{name}"]
        layer.weight = layer.weight + mx.array(scale * (a @ b).T)
    return golden_llava.our_logits(model)[0]


def bound(folder):
    model = random_llava()
    config, layers = read_adapter(folder)
    bind(model, folder, layers, is_whole(config))
    return golden_llava.our_logits(model)[0]


# -- mlx-lm's, of a language model alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [list(INNER), None, [f"model.layers.1.{name}" for name in INNER]])
def test_mlx_lms_adapter_of_the_last_blocks_is_read(tmp_path, capsys, keys):
    folder = mlx_lm(tmp_path / "lora", lora_parameters={"keys": keys})
    expected = merged(load_file(folder / "adapters.safetensors"), SCALE)
    np.testing.assert_allclose(bound(folder), expected, atol=PARITY)
    assert np.abs(expected - golden_llava.our_logits(random_llava())[0]).max() > 0.1
    assert "trained on a language model alone" in capsys.readouterr().err


def test_what_reads_it_for_other_ends_reads_the_same(tmp_path):
    folder = mlx_lm(tmp_path / "lora", blocks=(0, 1))
    names = {f"language_model.model.layers.{block}.{name}.weight" for block in (0, 1) for name in INNER}
    assert read_deltas(folder).updates.keys() == names
    to_peft(folder, tmp_path / "peft")
    assert len(read_peft(tmp_path / "peft").layers) == 4


@pytest.mark.parametrize(
    ("changes", "lost", "says"),
    [
        ({"num_layers": 2}, None, "2 layers of the config's keys have no tensors"),  # a block less than there should be
        ({}, "model.layers.0.mlp", "have no tensors"),
        ({"lora_parameters": {"keys": None}}, "model.layers.0.mlp", "have no tensors"),
        ({"lora_parameters": {"keys": ["self_attn.q_proj"]}}, None, "have tensors but are not among the keys"),
        ({"fine_tune_type": "dora"}, None, "fine_tune_type is the text 'dora'"),
        ({"fine_tune_type": "full"}, None, "fine_tune_type is the text 'full'"),
    ],
)
def test_one_that_is_not_whole_is_refused(tmp_path, changes, lost, says):
    blocks = (1,) if changes.get("num_layers") == 2 else (0, 1)
    folder = mlx_lm(tmp_path / "lora", blocks=blocks, **changes)
    file = folder / "adapters.safetensors"
    save_file({name: array for name, array in load_file(file).items() if not (lost and name.startswith(lost))}, file)
    with pytest.raises(UserError, match=says):
        read_adapter(folder)


# -- mlx-vlm's older form ---------------------------------------------------------------------------------------------

OLDER = {"rank": RANK, "alpha": SCALE, "dropout": 0.0}


def older(folder, config=OLDER):
    return written(folder, drawn([f"language_model.model.layers.1.{name}" for name in INNER], "AB"), config)


def test_mlx_vlms_older_form_names_the_way_and_both_strengths(tmp_path):
    folder = older(tmp_path / "an adapter")
    with pytest.raises(UserError) as told:
        read_adapter(folder)
    said = str(told.value)
    assert "0.4.4" in said and "2.5" in said and f"{SCALE / RANK:g}" in said
    command = re.search(r"`visalign convert (.*?)`", said)[1]
    output = tmp_path / "ours"
    assert convert([str(output) if word == "ADAPTER" else word for word in shlex.split(command)]) == 0
    expected = merged(load_file(folder / "adapters.safetensors"), SCALE, "AB")
    np.testing.assert_allclose(bound(output), expected, atol=PARITY)


def test_the_installed_mlx_vlm_wrote_it_with_the_other_strength(tmp_path):
    """Its own layers, as its 0.5 saved them, say the same logits as ours after the conversion."""
    from mlx_vlm.trainer.peft.utils import get_peft_model

    model = random_llava()
    get_peft_model(model, ["q_proj", "down_proj"], rank=RANK, alpha=SCALE, dropout=0.0, verbose=False, legacy=True)
    trained = {name: array for name, array in tree_flatten(model.parameters()) if name.endswith((".A", ".B"))}
    assert len(trained) == 2 * 2 * len(INNER)
    weights = [(name, 0.1 * mx.random.normal(array.shape, key=mx.random.key(len(name)))) for name, array in trained.items()]
    model.load_weights(weights, strict=False)
    theirs = golden_llava.our_logits(model)[0]
    folder = written(tmp_path / "older", {name: np.array(array) for name, array in weights}, OLDER)
    from_older(folder, tmp_path / "ours", SCALE / RANK)
    np.testing.assert_allclose(bound(tmp_path / "ours"), theirs, atol=PARITY)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "much"])
def test_a_strength_is_a_number_above_zero(tmp_path, capsys, scale):
    asked = ["peft", "--adapter-path", str(older(tmp_path / "older")), "--output", str(tmp_path / "ours")]
    with pytest.raises(SystemExit):
        convert([*asked, f"--scale={scale}"])
    assert "expected a number above 0" in capsys.readouterr().err
    assert convert(asked) == 2 and "--scale 2.5" in capsys.readouterr().err and not (tmp_path / "ours").exists()


def test_an_older_one_of_other_layers_is_refused(tmp_path):
    tensors = drawn([f"language_model.model.layers.1.{name}" for name in INNER], "AB")
    folder = written(tmp_path / "older", tensors | {"vision_tower.x.A": np.ones((2, 2), np.float32)}, OLDER)
    with pytest.raises(UserError, match="vision_tower"):
        from_older(folder, tmp_path / "ours", 1.0)


# -- PEFT's -----------------------------------------------------------------------------------------------------------

PEFT = Path(__file__).parents[1] / "golden/peft"


@pytest.mark.parametrize(
    "command",
    [
        "generate --model tiny --image a.png --adapter-path {}",
        "eval --adapter-path {} --count 1",
        "doctor --model tiny --adapter-path {}",
        "compare tiny {} --images tiny-world --count 1",
    ],
)
def test_pefts_adapter_names_the_command_that_converts_it(tmp_path, capsys, monkeypatch, command):
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert main(command.format(PEFT).split()) == 2
    said = capsys.readouterr().err
    assert f"a PEFT adapter: convert it with `visalign convert peft --adapter-path {PEFT} --output ADAPTER`" in said
