"""MLX to Hugging Face: float16 there and back is bit-identical, and transformers loads what comes out."""

import json
from pathlib import Path

import golden_llava
import mlx.core as mx
import numpy as np
import pytest
from hf_layouts import LAYOUTS, hf_tensors, write_hf, write_talking
from random_llava import CONFIG, random_llava
from random_onevision import CONFIG as ONEVISION
from random_onevision import random_onevision
from safetensors import safe_open
from safetensors.numpy import load_file

from mlx_visalign.convert.cli import main
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import PARITY

TIED = ONEVISION | {"tie_word_embeddings": True}


@pytest.fixture
def convert(tmp_path, capsys):
    """To MLX; returns the folder."""

    def run(source: Path, *arguments: str) -> Path:
        output = tmp_path / "mlx"
        assert main(["llava", "--hf-path", str(source), "--mlx-path", str(output), *arguments]) == 0, capsys.readouterr()
        return output

    return run


@pytest.fixture
def export(tmp_path, capsys):
    """Back; returns the exit code, the folder and what was said."""

    def run(folder: Path, *arguments: str) -> tuple[int, Path, str]:
        capsys.readouterr()
        output = tmp_path / "back"
        code = main(["export", "--mlx-path", str(folder), "--hf-path", str(output), *arguments])
        return code, output, "".join(capsys.readouterr())

    return run


def same_bits(folder: Path, expected: dict[str, np.ndarray]) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_bit_identical(tmp_path, convert, export, layout):
    """In names too: the layout that the folder came in is the one it goes out in."""
    source = write_hf(tmp_path / "hf", layout, files="shards")
    code, back, said = export(convert(source), "--verify")
    assert code == 0 and "80 of 80 tensors have the source's checksum" in said
    same_bits(back, hf_tensors(random_llava(), layout))
    with safe_open(back / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


@pytest.mark.parametrize(("model", "config"), [(random_onevision(), ONEVISION), (random_onevision(True), TIED)])
def test_onevision_there_and_back(tmp_path, convert, export, model, config):
    _, back, _ = export(convert(write_hf(tmp_path / "hf", "nested", model, config)))
    same_bits(back, hf_tensors(model, "nested"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_can_be_asked_for(tmp_path, convert, export, layout):
    _, back, _ = export(convert(write_hf(tmp_path / "hf", "nested")), "--layout", layout)
    same_bits(back, hf_tensors(random_llava(), layout))


def test_float32_and_bfloat16_keep_their_bits(tmp_path, convert, export):
    folder = convert(write_hf(tmp_path / "hf", dtype=np.float32), "--dtype", "bfloat16")
    _, back, _ = export(folder)
    ours, theirs = mx.load(str(folder / "model.safetensors")), mx.load(str(back / "model.safetensors"))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    assert ours[name].dtype == theirs[name].dtype == mx.bfloat16 and mx.array_equal(ours[name], theirs[name])


def test_words_and_pixels_go_along(tmp_path, convert, export):
    source = write_talking(tmp_path / "hf")
    folder = convert(source)
    _, back, _ = export(folder)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((back / "config.json").read_text())
    assert config["text_config"]["rope_parameters"]["rope_theta"] == 500.0
    assert config["visalign"] == read_json(folder / "config.json")["visalign"]


def test_a_dry_run_writes_nothing(tmp_path, convert, export):
    folder = convert(write_hf(tmp_path / "hf", "nested-flat"))
    before = sorted(tmp_path.rglob("*"))
    code, _, said = export(folder, "--dry-run")
    assert code == 0 and "language_model.model.* -> model.language_model.*" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"), [(("-q", "--q-group-size", "32"), "the weights are quantised"), ((), "not in MLX's layout")]
)
def test_what_cannot_be_exported_is_refused(tmp_path, convert, export, arguments, message):
    source = write_hf(tmp_path / "hf")
    folder = convert(source, *arguments) if arguments else source
    code, back, said = export(folder)
    assert code == 2 and message in " ".join(said.split())
    assert not back.exists()


@pytest.mark.reference
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_loads_it(tmp_path, convert, export, layout):
    """And computes the logits of the model that was converted in the first place."""
    import torch
    from transformers import LlavaForConditionalGeneration

    source = write_hf(tmp_path / "hf", "classic", dtype=np.float32)
    _, back, _ = export(convert(source, "--dtype", "float32"), "--layout", layout)
    model, about = LlavaForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"] and model.dtype == torch.float32
    at = 0
    for row, golden in zip(golden_llava.make_llava.ROWS, range(3), strict=True):
        count = row.count(CONFIG["image_token_index"]) // golden_llava.make_llava.IMAGE_TOKENS
        images = torch.tensor(golden_llava.make_llava.pixels(4)[at : at + count].transpose(0, 3, 1, 2))
        with torch.no_grad():
            found = model(input_ids=torch.tensor([row]), pixel_values=images).logits[0].numpy()
        np.testing.assert_allclose(found, golden_llava.GOLDEN[f"logits{golden}"], atol=PARITY)
        at += count


@pytest.mark.reference
def test_transformers_loads_onevision(tmp_path, convert, export):
    from transformers import LlavaOnevisionForConditionalGeneration

    _, back, _ = export(convert(write_hf(tmp_path / "hf", "classic", random_onevision(True), TIED)))
    _, about = LlavaOnevisionForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
