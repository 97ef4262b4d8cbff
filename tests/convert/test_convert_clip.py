"""CLIP in both layouts becomes the same scorer, whole or without the tower that a LLaVA holds already."""

import json
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hf_layouts import TINY, write_hf
from mlx.utils import tree_flatten
from original_layout import write_torch
from safetensors.numpy import load_file, save_file
from small_clip import CONFIG

from mlx_visalign.convert.cli import main
from mlx_visalign.convert.clip import parameters
from mlx_visalign.models.clip import CLIP, CLIPConfig, load_clip
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import PARITY

TINY_CLIP = TINY.parent / "clip"
GOLDEN = Path(__file__).parents[1] / "golden" / "clip.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def convert(tmp_path, capsys):
    """Run `visalign convert clip`; returns its figures, or the refusal, after which nothing may be left behind."""

    def run(source: Path, *arguments, refused: bool = False):
        before = sorted(tmp_path.iterdir())
        code = main(["clip", "--hf-path", str(source), *map(str, arguments), *([] if refused else ["--json"])])
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), err
        if refused:
            assert sorted(tmp_path.iterdir()) == before
        return " ".join(err.split()) if refused else json.loads(out)

    return run


def same_parameters(one: CLIP, other: CLIP) -> bool:
    ours, theirs = (dict(tree_flatten(clip.parameters())) for clip in (one, other))
    return ours.keys() == theirs.keys() and all(mx.array_equal(ours[name], theirs[name]) for name in ours)


# -- both layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_hugging_faces_layout_gives_transformers_vectors(tmp_path, convert, golden, files):
    weights = {name.removeprefix("weights."): array for name, array in golden.items() if name.startswith("weights.")}
    source = tmp_path / "clip"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    if files == "bin":
        buffer = {"vision_model.embeddings.position_ids": np.zeros((1, 5), np.float32)}
        write_torch(source / "pytorch_model.bin", weights | buffer)
    else:
        save_file(weights, source / "model.safetensors")
    convert(source, "--mlx-path", tmp_path / "out", "--dtype", "float32", "--verify")
    clip = load_clip(tmp_path / "out")
    np.testing.assert_allclose(clip.encode_image(mx.array(golden["images"])), golden["image_vectors"], atol=PARITY)
    np.testing.assert_allclose(clip.encode_text(mx.array(golden["ids"])), golden["text_vectors"], atol=PARITY)


@cache
def wide() -> dict[str, np.ndarray]:
    """A random CLIP with heads of 64, by Hugging Face's names, as torch has it."""
    tower = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": tower | {"vocab_size": 40, "max_position_embeddings": 9, "eos_token_id": 39},
        "vision_config": tower | {"hidden_size": 64, "num_attention_heads": 1, "image_size": 12, "patch_size": 4},
    }
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in parameters(config).items()}
    return weights | {"logit_scale": np.array(2.0, np.float32)}


def openai_tensors() -> dict[str, np.ndarray]:
    """The same as openai/CLIP names and turns it."""
    ours, found = wide(), {}
    for part, theirs, layers in (("vision_model", "visual.", 2), ("text_model", "", 2)):
        for layer in range(layers):
            block, new = f"{part}.encoder.layers.{layer}", f"{theirs}transformer.resblocks.{layer}"
            for kind in ("weight", "bias"):
                thirds = [ours[f"{block}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
                found[f"{new}.attn.in_proj_{kind}"] = np.concatenate(thirds)
                found[f"{new}.attn.out_proj.{kind}"] = ours[f"{block}.self_attn.out_proj.{kind}"]
                found[f"{new}.mlp.c_fc.{kind}"] = ours[f"{block}.mlp.fc1.{kind}"]
                found[f"{new}.mlp.c_proj.{kind}"] = ours[f"{block}.mlp.fc2.{kind}"]
                found[f"{new}.ln_1.{kind}"] = ours[f"{block}.layer_norm1.{kind}"]
                found[f"{new}.ln_2.{kind}"] = ours[f"{block}.layer_norm2.{kind}"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = ours[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = ours[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = ours[f"text_model.final_layer_norm.{kind}"]
    return found | {
        "visual.class_embedding": ours["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": ours["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": ours["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": ours["visual_projection.weight"].T.copy(),
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "text_projection": ours["text_projection.weight"].T.copy(),
        "logit_scale": ours["logit_scale"],
    }


@pytest.mark.parametrize("file", ["ViT.safetensors", "ViT.bin"])
def test_openais_layout_becomes_hugging_faces(tmp_path, convert, file):
    """Names, thirds and turned projections; sizes and the number of heads from the shapes."""
    if file.endswith("bin"):
        write_torch(tmp_path / file, openai_tensors())
    else:
        save_file(openai_tensors() | {"context_length": np.array(9)}, tmp_path / file)
    figures = convert(tmp_path / file, "--mlx-path", tmp_path / "out", "--dtype", "float32", "--verify")
    assert figures["verified"] == f"{len(wide())} of {len(wide())} tensors have the source's checksum"
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wide().keys() and all(np.array_equal(found[name], array) for name, array in wide().items())
    config = load_clip(tmp_path / "out").config
    assert (config.text.num_attention_heads, config.text.eos_token_id, config.text.max_position_embeddings) == (2, 39, 9)
    assert (config.vision.num_attention_heads, config.vision.image_size, config.vision.patch_size) == (1, 12, 4)


# -- a LLaVA of the same tower ----------------------------------------------------------------------------------------


@pytest.fixture
def tiny_llava(tmp_path, capsys):
    """The tiny LLaVA, which sees through the tiny CLIP, converted."""
    assert main(["llava", "--hf-path", str(TINY), "--mlx-path", str(tmp_path / "llava")]) == 0
    capsys.readouterr()
    return tmp_path / "llava"


def test_a_shared_tower_is_stored_once(tmp_path, convert, tiny_llava):
    figures = convert(TINY_CLIP, "--llava", tiny_llava, "--mlx-path", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in stored if name.startswith("vision_model.")]
    assert figures["parameters"] == f"{sum(array.size for array in stored.values()):,} stored"
    assert same_parameters(load_clip(tmp_path / "out"), load_clip(TINY_CLIP))
    (tmp_path / "elsewhere").mkdir()
    for name in ("out", "llava"):  # both may move together
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert same_parameters(load_clip(tmp_path / "elsewhere" / "out"), load_clip(TINY_CLIP))


def test_blocks_that_the_llava_lacks_are_stored(tmp_path, convert, tiny_llava):
    """A LLaVA may have let go of the last block and the norm, which its features do not need."""
    weights = mx.load(str(tiny_llava / "model.safetensors"))
    lacking = ("vision_tower.vision_model.encoder.layers.3.", "vision_tower.vision_model.post_layernorm.")
    kept = {name: array for name, array in weights.items() if not name.startswith(lacking)}
    mx.save_safetensors(str(tiny_llava / "model.safetensors"), kept, {"format": "mlx"})
    convert(TINY_CLIP, "--llava", tiny_llava, "--mlx-path", tmp_path / "out")
    stored = {name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith("vision_model.")}
    assert {name.split(".")[1] for name in stored} == {"encoder", "post_layernorm"} and len(stored) == 18
    assert same_parameters(load_clip(tmp_path / "out"), load_clip(TINY_CLIP))


def test_another_tower_is_not_shared(tmp_path, convert, tiny_llava):
    weights = mx.load(str(tiny_llava / "model.safetensors"))
    name = "vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias"
    weights[name] = weights[name] * 1.01
    mx.save_safetensors(str(tiny_llava / "model.safetensors"), dict(weights), {"format": "mlx"})
    figures = convert(TINY_CLIP, "--llava", tiny_llava, "--mlx-path", tmp_path / "out", "--verify")
    assert (
        figures["shared"].startswith("nothing")
        and "1 of 71 tensors differ, vision_model.encoder.layers.2.mlp.fc1.bias" in figures["shared"]
    )
    assert same_parameters(load_clip(tmp_path / "out"), load_clip(TINY_CLIP))


def test_a_llava_that_went_away_or_changed_is_asked_for(tmp_path, convert, tiny_llava):
    convert(TINY_CLIP, "--llava", tiny_llava, "--mlx-path", tmp_path / "out")
    config = json.loads((tiny_llava / "config.json").read_text())
    (tiny_llava / "config.json").write_text(json.dumps(config | {"visalign": {"source_fingerprint": "another"}}))
    with pytest.raises(UserError, match="put it back, or convert the CLIP again"):
        load_clip(tmp_path / "out")
    tiny_llava.rename(tmp_path / "gone")
    with pytest.raises(UserError, match="put it back, or convert the CLIP again"):
        load_clip(tmp_path / "out")


def test_a_llava_that_was_not_converted_is_refused(tmp_path, convert):
    hf = write_hf(tmp_path / "hf")
    arguments = ("--llava", hf, "--mlx-path", tmp_path / "out")
    assert "was not converted by `visalign convert`" in convert(TINY_CLIP, *arguments, refused=True)


def test_parameters_at_full_size():
    """What --llava saves of openai/clip-vit-large-patch14-336: 304 of 428 million parameters."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = {"projection_dim": 768, "text_config": text, "vision_config": vision | {"image_size": 336, "patch_size": 14}}
    counts = {name: int(np.prod(shape)) for name, shape in parameters(config).items()}
    parts = [sum(count for name, count in counts.items() if name.startswith(part)) for part in ("text_model.", "vision_model.")]
    assert parts == [123_060_480, 303_507_456] and sum(counts.values()) - sum(parts) == 1_376_257


# -- what is not a CLIP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "describes a 'siglip' model"),
        ({"text_config": None}, "has no text_config"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000, which no model has"),
        ({"vision_config": {"patch_size": 0}}, "patch_size is 0"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": {"hidden_size": "many"}}, "hidden_size"),
        ({"vision_config": {"num_attention_heads": 7}}, "not a multiple of num_attention_heads"),
        ({"projection_dim": 64}, "config.json requires"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, convert, change, message):
    config = json.loads((TINY_CLIP / "config.json").read_text())
    change = {name: config[name] | value if isinstance(value, dict) else value for name, value in change.items()}
    source = tmp_path / "clip"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config | change))
    (source / "model.safetensors").write_bytes((TINY_CLIP / "model.safetensors").read_bytes())
    assert message in convert(source, "--mlx-path", tmp_path / "out", refused=True)


@pytest.mark.parametrize("name", ["visual.proj", "token_embedding.weight", "visual.conv1.weight", "ln_final.bias"])
def test_openai_weights_of_another_shape_are_refused(tmp_path, convert, name):
    save_file(openai_tensors() | {name: np.zeros(7, np.float32)}, tmp_path / "ViT.safetensors")
    assert "shape" in convert(tmp_path / "ViT.safetensors", "--mlx-path", tmp_path / "out", refused=True)


def test_config_from_dict_keeps_hugging_faces_defaults():
    from transformers import CLIPConfig as Theirs

    ours, theirs = CLIPConfig.from_dict({"text_config": {}, "vision_config": {}}), Theirs()
    for mine, other in ((ours.text, theirs.text_config), (ours.vision, theirs.vision_config)):
        assert {name: getattr(other, name) for name in vars(mine)} == vars(mine)
