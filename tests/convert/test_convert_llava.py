"""LLaVA from Hugging Face to MLX: every layout gives transformers' logits, and what MLX would compute otherwise is refused."""

import json
from pathlib import Path

import golden_llava
import golden_onevision
import mlx.core as mx
import numpy as np
import pytest
from hf_layouts import LAYOUTS, TINY, hf_tensors, write_hf, write_talking, write_words_and_pixels
from mlx.utils import tree_flatten
from PIL import Image
from random_llava import CONFIG, random_llava
from random_onevision import CONFIG as ONEVISION
from random_onevision import random_onevision

from mlx_visalign.convert.cli import main
from mlx_visalign.convert.layouts.llava_config import complete
from mlx_visalign.convert.steps import parity
from mlx_visalign.inference.policy import load
from mlx_visalign.models import families
from mlx_visalign.models.loading import load_model, quantize_language_model
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import scene
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import PARITY

EMBEDDING = "language_model.model.embed_tokens.weight"


TINY_CONFIG = read_json(TINY / "config.json")


@pytest.fixture
def convert(tmp_path, capsys):
    """Convert a Hugging Face folder with more arguments; returns the folder that comes of it and the figures."""

    def run(source: Path, *arguments: str) -> tuple[Path, dict]:
        output = tmp_path / f"mlx{len(list(tmp_path.iterdir()))}"
        code = main(["llava", "--hf-path", str(source), "--mlx-path", str(output), "--json", *arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return output, json.loads(out)

    return run


@pytest.fixture
def refusal(tmp_path, capsys):
    """Try to convert; returns what is said. Nothing may be left behind."""

    def run(source: Path, *arguments: str) -> str:
        output = tmp_path / "refused"
        before = sorted(tmp_path.iterdir())
        assert main(["llava", "--hf-path", str(source), "--mlx-path", str(output), *arguments]) == 2
        assert sorted(tmp_path.iterdir()) == before
        return " ".join(capsys.readouterr().err.split())

    return run


def loaded(folder: Path):
    return load_model(folder, read_json(folder / "config.json"))


def same_parameters(model, other):
    ours, theirs = (dict(tree_flatten(each.parameters())) for each in (model, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and mx.array_equal(ours[name], theirs[name]), name


def half(model):
    model.set_dtype(mx.float16)
    return model


# -- every layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["one", "shards"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_transformers_logits(tmp_path, convert, layout, files):
    """Three rows in a batch, one with two images, against transformers' one by one; rope_theta 500."""
    source = write_hf(tmp_path / "hf", layout, dtype=np.float32, files=files)
    folder, figures = convert(source, "--dtype", "float32", "--verify")
    golden_llava.assert_logits(
        golden_llava.our_logits(loaded(folder)), [golden_llava.GOLDEN[f"logits{row}"] for row in range(3)]
    )
    assert figures["tensors"].startswith("all 80 filled, 0 ")
    assert figures["verified"] == "80 of 80 tensors have the source's checksum"


@pytest.mark.reference
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_shards_give_transformers_logits(tmp_path, convert, layout):
    folder, _ = convert(write_hf(tmp_path / "hf", layout, dtype=np.float32, files="bin"), "--dtype", "float32")
    golden_llava.assert_logits(golden_llava.our_logits(loaded(folder)), golden_llava.make_llava.logits())


@pytest.mark.reference
@pytest.mark.parametrize("files", ["one", "bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_verify_compares_with_transformers(tmp_path, convert, layout, files, family):
    """transformers gets the source's own names and config.json, so it must understand the layout by itself."""
    model, config = (random_llava(), CONFIG) if family == "llava" else (random_onevision(), ONEVISION)
    source = write_hf(tmp_path / "hf", layout, model, config, np.float32, files)
    _, figures = convert(source, "--dtype", "float32", "--verify", "logits")
    assert float(figures["logits"].split(" by ")[1].split(" ")[0]) <= PARITY


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["untied", "tied", "tied, and in the file"])
def test_onevision_gives_transformers_logits(tmp_path, convert, layout, head):
    tied = head != "untied"
    model = random_onevision(tied)
    extra = {}
    if head == "tied, and in the file":
        name = "lm_head.weight" if layout.startswith("nested") else "language_model.lm_head.weight"
        extra = {name: np.array(model.language_model.model.embed_tokens.weight)}
    config = ONEVISION | {"tie_word_embeddings": tied}
    source = write_hf(tmp_path / "hf", layout, model, config, np.float32, extra=extra)
    folder, figures = convert(source, "--dtype", "float32", "--verify")
    golden = [golden_onevision.GOLDEN[f"{'tied' if tied else 'untied'}{row}"] for row in range(2)]
    golden_llava.assert_logits(golden_onevision.our_logits(loaded(folder)), golden)
    assert f", {len(extra)} of the source dropped" in figures["tensors"]
    assert read_json(folder / "config.json")["visalign"]["template"] == "onevision"


def test_a_head_that_is_not_the_embedding_is_not_tied(tmp_path, convert):
    """As in transformers, whatever the config says."""
    config = ONEVISION | {"tie_word_embeddings": True}
    folder, _ = convert(write_hf(tmp_path / "hf", "classic", random_onevision(), config, np.float32), "--dtype", "float32")
    same_parameters(loaded(folder), random_onevision())


@pytest.mark.parametrize("config", [CONFIG, ONEVISION, ONEVISION | {"tie_word_embeddings": True}])
def test_every_parameter_is_known(config):
    model = families.build_model(config)
    assert families.parameters(complete(config)) == {name: array.shape for name, array in tree_flatten(model.parameters())}


def test_mlx_vlm_loads_it_unchanged(tmp_path, convert):
    """With the processor files that its loader wants; its own forward is right for one row."""
    import mlx_vlm

    source = write_hf(tmp_path / "hf", "classic-flat", loaded(TINY), TINY_CONFIG)
    write_words_and_pixels(source)
    folder, _ = convert(source)
    model, processor = mlx_vlm.load(str(folder))
    same_parameters(model, half(loaded(TINY)))
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_index
    assert (processor.patch_size, processor.num_additional_image_tokens) == (8, 1)
    ids, pixels = parity.example(complete(TINY_CONFIG))
    model.set_dtype(mx.float32)
    theirs = model(mx.array([ids]), mx.array(pixels.transpose(0, 3, 1, 2)), None).logits[0]
    np.testing.assert_allclose(np.array(theirs), parity.mlx_logits(folder, ids, pixels), atol=PARITY)


# -- what comes along -------------------------------------------------------------------------------------------------


def test_a_converted_folder_answers_like_its_source(tmp_path, convert):
    source = write_hf(tmp_path / "hf", "nested-flat", loaded(TINY), TINY_CONFIG)
    write_words_and_pixels(source)
    (source / "generation_config.json").write_text('{"do_sample": false}')
    folder, figures = convert(source, "--template", "hf", "--aspect", "crop")
    policy, before = load(folder, dtype=mx.float32), load(TINY, template="hf", aspect="crop")
    assert (policy.template, policy.preprocessing) == ("hf", before.preprocessing)
    picture = Image.fromarray(draw(scene(0)))
    assert policy.answer(picture, "What is there?") == before.answer(picture, "What is there?") != ""
    assert "generation_config.json" in figures["carried over"] and "missing" not in figures
    assert json.loads((folder / "generation_config.json").read_text()) == {"do_sample": False}


def test_image_settings_inside_the_processor_config_are_found(tmp_path, convert):
    """Where transformers >= 5 writes them, with what its LLaVA processor cannot do without."""
    source = write_talking(tmp_path / "hf")
    (source / "preprocessor_config.json").unlink()
    processor = json.loads((source / "processor_config.json").read_text())
    (source / "processor_config.json").write_text(json.dumps({"image_processor": processor["image_processor"]}))
    folder, _ = convert(source)
    assert json.loads((folder / "preprocessor_config.json").read_text()) == processor["image_processor"]
    found = json.loads((folder / "processor_config.json").read_text())
    assert (found["patch_size"], found["num_additional_image_tokens"]) == (8, 1)


def test_what_is_missing_is_said(tmp_path, convert):
    _, figures = convert(write_hf(tmp_path / "hf"))
    assert figures["missing"].startswith("tokenizer.json, tokenizer_config.json and preprocessor_config.json: ")


def test_no_code_is_carried_over(tmp_path, convert):
    config = CONFIG | {"auto_map": {"AutoModel": "evil.Model"}, "model_file": "evil.py"}
    config["text_config"] = CONFIG["text_config"] | {"auto_map": {"AutoConfig": "evil.Config"}}
    source = write_hf(tmp_path / "hf", config=config)
    (source / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}, "model_max_length": 7}')
    for name in ("evil.py", "training_args.bin", "arch.PY", "notes.txt"):
        (source / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    folder, _ = convert(source)
    assert {file.name for file in folder.iterdir()} == {
        *("config.json", "model.safetensors", "processor_config.json", "tokenizer_config.json")
    }
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"model_max_length": 7}
    assert "evil" not in (folder / "config.json").read_text()
    assert not (tmp_path / "ran").exists()


def test_the_source_is_not_changed(tmp_path, convert):
    source = write_talking(tmp_path / "hf", files="shards")
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in source.iterdir()}
    convert(source, "-q", "--q-group-size", "32", "--verify")
    assert before == {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in source.iterdir()}


def test_the_fingerprint_is_the_weights(tmp_path, convert):
    """The same for every layout, split and target precision; another for weights of another type or of another model."""

    def fingerprint(*arguments, seed=0, **how):
        source = write_hf(tmp_path / f"hf{len(list(tmp_path.iterdir()))}", model=random_llava(seed), **how)
        folder, figures = convert(source, *arguments)
        assert read_json(folder / "config.json")["visalign"]["source_fingerprint"] == figures["fingerprint"]
        return figures["fingerprint"]

    same = {
        fingerprint(),
        fingerprint(layout="nested-flat", files="shards"),
        fingerprint("--dtype", "float32"),
        fingerprint("-q", "--q-group-size", "32"),
    }
    assert len(same) == 1
    assert len({*same, fingerprint(seed=1), fingerprint(dtype=np.float32)}) == 3


# -- the config -------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_transformers():
    import transformers

    both = [families.find(name) for name in ("llava", "llava_onevision")]
    defaults = {kind.model_type: kind.defaults for family in both for kind in (family, family.text, family.vision)}
    for name in ("Llava", "LlavaOnevision", "Llama", "Qwen2", "CLIPVision", "SiglipVision"):
        theirs = getattr(transformers, f"{name}Config")()
        ours = defaults[theirs.model_type]
        assert {field: getattr(theirs, field) for field in ours} == ours


def test_left_out_defaults_are_spelled_out(tmp_path, convert):
    """Vicuna's epsilon is said, the vocabulary and the number of heads are not; mlx-vlm would assume other values."""
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "rope_theta": 700.0}
    config = CONFIG | {"text_config": text | {"num_attention_heads": 4}, "torch_dtype": "float16", "dtype": "float16"}
    model = random_llava(config=config | {"text_config": config["text_config"] | {"vocab_size": 32000}})
    folder, _ = convert(write_hf(tmp_path / "hf", model=model, config=config), "--dtype", "bfloat16")
    found = read_json(folder / "config.json")
    text = found["text_config"]
    assert text["rope_theta"] == 700.0 and text["rope_parameters"] == {"rope_type": "default", "rope_theta": 700.0}
    assert (text["vocab_size"], text["num_key_value_heads"], text["rms_norm_eps"]) == (32000, 4, 1e-6)
    assert found["torch_dtype"] == "bfloat16" and "dtype" not in found
    assert found["visalign"].keys() == {"template", "aspect", "source_fingerprint", "source_layout"}
    assert (found["visalign"]["template"], found["visalign"]["aspect"]) == ("vicuna_v1", "pad")


TEXT, VISION = "text_config", "vision_config"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"model_type": "llava_next"}, "mlx-vlm's LLaVA-NeXT does not cut, unpad and join"),
        ("", {"model_type": "qwen2_vl"}, "Supported are llava and llava_onevision"),
        ("", {"model_type": ["llava"]}, "Supported are llava and llava_onevision"),
        ("", {"model_type": "llava_llama"}, "use `visalign convert llava_original`"),
        ("", {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "use `visalign convert llava_original`"),
        ("", {"text_config": None}, "has no text_config"),
        ("", {"quantization": {"bits": 4, "group_size": 64}}, "the weights are quantised"),
        ("", {"vision_feature_layer": [-2, -5]}, "only one vision_feature_layer"),
        ("", {"vision_feature_select_strategy": "full"}, "mlx-vlm would silently compute 'default'"),
        ("", {"projector_hidden_act": "relu"}, "mlx-vlm would silently compute 'gelu'"),
        ("", {"visalign": "yes"}, "visalign should be an object with template and aspect"),
        (TEXT, {"model_type": "mistral"}, "only 'llama' is supported"),
        (TEXT, {"hidden_act": "gelu"}, "mlx-vlm would silently compute 'silu'"),
        (TEXT, {"attention_bias": True}, "attention_bias True is not supported"),
        (TEXT, {"head_dim": 32}, "head_dim 32 is not hidden_size / num_attention_heads"),
        (TEXT, {"hidden_size": 66}, "hidden_size is not a multiple"),
        (TEXT, {"num_hidden_layers": 10**9}, "num_hidden_layers should be a whole number from 1 to 1000"),
        (TEXT, {"vocab_size": "96"}, "vocab_size should be a whole number"),
        (TEXT, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of the type 'linear'"),
        (TEXT, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary positions of the type 'yarn'"),
        (TEXT, {"rope_parameters": {"rope_theta": "many"}}, "rope_theta should be a number above 0"),
        (VISION, {"model_type": "siglip_vision_model"}, "only 'clip_vision_model' is supported"),
        (VISION, {"hidden_act": "gelu"}, "mlx-vlm would silently compute 'quick_gelu'"),
        (VISION, {"layer_norm_eps": 1e-6}, "mlx-vlm would silently compute 1e-05"),
        (VISION, {"patch_size": 0}, "patch_size should be a whole number"),
    ],
)
def test_what_mlx_would_ignore_is_refused(tmp_path, refusal, part, change, message):
    config = CONFIG | ({part: CONFIG[part] | change} if part else change)
    assert message in refusal(write_hf(tmp_path / "hf", config=config))


# -- the weights ------------------------------------------------------------------------------------------------------


def test_what_a_cast_flushes_is_counted(tmp_path, convert):
    embedding = hf_tensors(random_llava(), "classic", np.float32)[EMBEDDING]
    embedding[1, :3] = 1e-9
    source = write_hf(tmp_path / "hf", dtype=np.float32, extra={EMBEDDING: embedding})
    assert convert(source, "--verify")[1]["precision"] == "float16; 3 values became zero"
    assert convert(source, "--dtype", "bfloat16", "--verify")[1]["precision"] == "bfloat16, no overflow or underflow"


def test_what_a_cast_would_make_infinite_is_refused(tmp_path, convert, refusal):
    """Such a model answers nothing."""
    embedding = hf_tensors(random_llava(), "classic", np.float32)[EMBEDDING]
    embedding[0, :2] = 1e6
    source = write_hf(tmp_path / "hf", dtype=np.float32, extra={EMBEDDING: embedding})
    said = refusal(source)
    assert f"2 numbers of {EMBEDDING} would be infinite" in said and "--dtype bfloat16" in said
    assert convert(source, "--dtype", "bfloat16", "--verify")[1]["precision"].startswith("bfloat16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_that_are_not_finite_are_refused(tmp_path, refusal, value, dtype):
    name = "multi_modal_projector.linear_2.bias"
    bias = np.zeros(64, dtype)
    bias[63] = value
    assert f"{name} holds numbers that are not finite" in refusal(write_hf(tmp_path / "hf", dtype=dtype, extra={name: bias}))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"language_model.model.extra.weight": np.zeros(3)}, "unknown tensors: language_model.model.extra.weight"),
        ({"multi_modal_projector.linear_1.bias": np.zeros(63)}, "shape 63, but config.json requires 64"),
        ({"multi_modal_projector.linear_1.bias": np.zeros(64, np.int64)}, "has the type I64, expected floats"),
        ({"multi_modal_projector.linear1.bias": np.zeros(64)}, "(nearest: multi_modal_projector.linear_1.bias)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, refusal, extra, message):
    assert message in refusal(write_hf(tmp_path / "hf", extra=extra))


def test_buffers_are_dropped_on_purpose(tmp_path, convert):
    buffers = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8),
        "vision_tower.vision_model.embeddings.position_ids": np.arange(5)[None],
    }
    folder, figures = convert(write_hf(tmp_path / "hf", extra=buffers))
    assert "2 of the source dropped" in figures["tensors"]
    same_parameters(loaded(folder), half(random_llava()))


def test_an_mlx_folder_is_not_converted_again(tmp_path, convert, refusal):
    folder, _ = convert(write_hf(tmp_path / "hf"))
    assert "already in MLX's layout" in refusal(folder)


# -- quantisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_quantised_as_mlx_does_it_in_memory(tmp_path, convert, bits, dtype):
    """To the bit, and the language model only: 2 x 7 linear layers, the embedding and the head."""
    source = write_hf(tmp_path / "hf", "nested", dtype=np.float32)
    arguments = ("-q", "--q-bits", str(bits), "--q-group-size", "32", "--dtype", dtype, "--verify")
    folder, figures = convert(source, *arguments)
    expected = random_llava()
    expected.set_dtype(getattr(mx, dtype))
    assert quantize_language_model(expected, bits, 32) == 16
    same_parameters(loaded(folder), expected)
    assert figures["quantised"] == f"16 of 16 layers of the language model to {bits} bits, groups of 32"
    assert figures["verified"].endswith("16 quantised ones within a step of their group")


def test_quantised_in_pieces_is_quantised_the_same(tmp_path, convert, monkeypatch):
    whole, _ = convert(write_hf(tmp_path / "hf"), "-q", "--q-group-size", "32")
    monkeypatch.setattr("mlx_visalign.convert.steps.quantize.AT_ONCE", 192)
    monkeypatch.setattr("mlx_visalign.convert.steps.verify.ROWS", 7)
    pieces, _ = convert(tmp_path / "hf", "-q", "--q-group-size", "32", "--verify")
    assert (whole / "model.safetensors").read_bytes() == (pieces / "model.safetensors").read_bytes()


def test_everything_can_be_quantised(tmp_path, convert):
    folder, figures = convert(write_hf(tmp_path / "hf"), "-q", "--q-group-size", "32", "--q-everything", "--verify")
    assert figures["quantised"].startswith("36 of 36 layers of the whole model")  # + 3 x 6 in the tower, 2 in the projector
    from mlx_vlm.utils import load_model

    same_parameters(load_model(folder), loaded(folder))


def test_rows_that_no_group_divides_stay_as_they_are(tmp_path, convert):
    model = random_llava(intermediate_size=96)
    config = CONFIG | {"text_config": CONFIG["text_config"] | {"intermediate_size": 96}}
    folder, figures = convert(write_hf(tmp_path / "hf", model=model, config=config), "-q", "--verify")
    assert figures["quantised"].startswith("14 of 16 layers") and "2 not quantised" in figures["quantised"]
    assert mx.array_equal(
        loaded(folder).language_model.model.layers[0].mlp.down_proj.weight,
        half(model).language_model.model.layers[0].mlp.down_proj.weight,
    )


def test_how_to_quantise_without_saying_to_is_refused(tmp_path, refusal):
    assert "need -q" in refusal(write_hf(tmp_path / "hf"), "--q-bits", "8")
