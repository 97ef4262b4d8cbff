"""LLaVA in its authors' layout: every form of it becomes the same model, and what is missing or does not fit is named."""

import json
import shutil
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import original_layout as layout
import pytest
from hf_layouts import hf_tensors
from mlx.utils import tree_flatten
from original_layout import AUTHORS, ROWS, TOWER, VISION, WORDS, write_folder, write_torch
from safetensors.numpy import load_file, save_file

from mlx_visalign.convert.cli import main
from mlx_visalign.convert.fuse import fuse
from mlx_visalign.data.prompt_template import TEMPLATES
from mlx_visalign.inference.policy import load
from mlx_visalign.models.chat_template import stated_by
from mlx_visalign.models.loading import load_model
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import PARITY

PROJECTOR = "model.mm_projector."


@cache
def tensors() -> dict[str, np.ndarray]:
    return layout.authors_tensors(layout.authors_model())


@pytest.fixture
def convert(tmp_path, capsys):
    """Run a converter; returns its figures, or the refusal, after which nothing may be left behind."""

    def run(*arguments, refused: bool = False):
        before = sorted(tmp_path.iterdir())
        code = main([*map(str, arguments), *([] if refused else ["--json"])])
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), err
        if refused:
            assert sorted(tmp_path.iterdir()) == before
        return " ".join(err.split()) if refused else json.loads(out)

    return run


@pytest.fixture
def to_mlx(tmp_path, convert):
    """Convert a folder of the authors' to `mlx`, in float32."""

    def run(source: Path, *arguments) -> tuple[Path, dict]:
        output = tmp_path / f"mlx{len(list(tmp_path.iterdir()))}"
        return output, convert("llava_original", "--hf-path", source, "--mlx-path", output, "--dtype", "float32", *arguments)

    return run


@pytest.fixture
def refusal(tmp_path, convert):
    def run(source: Path, *arguments) -> str:
        return convert("llava_original", "--hf-path", source, "--mlx-path", tmp_path / "no", *arguments, refused=True)

    return run


def loaded(folder: Path):
    return load_model(folder, read_json(folder / "config.json"))


def assert_same(model, other):
    ours, theirs = (dict(tree_flatten(each.parameters())) for each in (model, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and mx.array_equal(ours[name], theirs[name]), name


# -- every form of a whole model --------------------------------------------------------------------------------------


def written(form: str, folder: Path) -> tuple[Path, list]:
    """The same model in one of its forms, and the arguments it takes."""
    rest, tower = layout.split_tower(tensors())
    if form == "with its tower":
        return write_folder(folder / "llava", tensors()), []
    clip = layout.write_tower(folder / "clip", tower)
    source = write_folder(folder / "llava", rest)
    if form == "flat tower":
        flat = {name.removeprefix("vision_model."): array for name, array in tower.items()}
        write_folder(clip, flat, {"model_type": "clip_vision_model", **VISION})
    if form == "tower named in config.json":
        write_folder(source, rest, AUTHORS | {"mm_vision_tower": str(clip)})
        return source, []
    if form == "torch shards":
        (source / "model.safetensors").unlink()
        for number, part in enumerate((sorted(rest)[::2], sorted(rest)[1::2]), 1):
            write_torch(source / f"pytorch_model-{number:05d}-of-00002.bin", {name: rest[name] for name in part})
    if form == "projector apart":
        save_file({name: array for name, array in rest.items() if PROJECTOR not in name}, source / "model.safetensors")
        write_torch(source / "mm_projector.bin", {name: array for name, array in rest.items() if PROJECTOR in name})
    return source, ["--vision-tower", clip]


FORMS = ("with its tower", "tower apart", "flat tower", "tower named in config.json", "torch shards", "projector apart")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_model(tmp_path, to_mlx, form):
    source, arguments = written(form, tmp_path)
    folder, figures = to_mlx(source, *arguments, "--verify")
    assert_same(loaded(folder), layout.authors_model())
    assert figures["verified"] == "80 of 80 tensors have the source's checksum"
    assert "48 rows added for <image>, <pad> and padding: each the mean of all rows" in figures["vocabulary"]


@pytest.mark.reference
@pytest.mark.parametrize("form", ["with its tower", "torch shards"])
def test_verify_compares_with_transformers(tmp_path, to_mlx, form):
    source, arguments = written(form, tmp_path)
    _, figures = to_mlx(source, *arguments, "--verify", "logits")
    assert float(figures["logits"].split(" by ")[1].split(" ")[0]) <= PARITY


def test_config_is_hugging_faces_with_every_value_that_counts(tmp_path, to_mlx):
    folder, _ = to_mlx(write_folder(tmp_path / "llava", tensors()))
    config = read_json(folder / "config.json")
    text = config["text_config"]
    assert (config["model_type"], config["image_token_index"], config["pad_token_id"]) == ("llava", WORDS, WORDS + 1)
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert (text["vocab_size"], text["rms_norm_eps"], text["rope_parameters"]["rope_theta"]) == (ROWS, 1e-5, 500.0)
    assert (config["vision_config"]["num_attention_heads"], config["vision_config"]["image_size"]) == (1, 28)
    assert (config["visalign"]["template"], config["visalign"]["aspect"]) == ("vicuna_v1", "pad")
    assert config["visalign"]["source_layout"] == "original" and "auto_map" not in config


def test_an_image_that_is_not_padded_is_cropped(tmp_path, to_mlx):
    source = write_folder(tmp_path / "llava", tensors(), AUTHORS | {"image_aspect_ratio": "square"})
    layout.write_tokenizer(source)
    folder, _ = to_mlx(source)
    assert read_json(folder / "config.json")["visalign"]["aspect"] == "crop"
    assert read_json(folder / "preprocessor_config.json")["do_pad"] is False


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_rows_are_the_mean_in_the_matrix_own_type(tmp_path, convert, dtype):
    """Rounded once, after a sum in float64."""
    arrays = layout.authors_tensors(layout.authors_model(), np.float16)
    source = write_folder(tmp_path / "llava", arrays)
    if dtype == "bfloat16":
        mx.save_safetensors(str(source / "model.safetensors"), {n: mx.array(a).astype(mx.bfloat16) for n, a in arrays.items()})
    convert(
        "llava_original",
        "--hf-path",
        source,
        "--mlx-path",
        tmp_path / "mlx",
        "--dtype",
        np.dtype(dtype).name if dtype != "bfloat16" else dtype,
    )
    for matrix in (loaded(tmp_path / "mlx").language_model.model.embed_tokens, loaded(tmp_path / "mlx").language_model.lm_head):
        rows = np.array(matrix.weight.astype(mx.float32), np.float64)
        mean = mx.array(rows[:WORDS].mean(axis=0).astype(np.float32)).astype(matrix.weight.dtype)
        assert mx.array_equal(matrix.weight[WORDS:], mx.broadcast_to(mean, (ROWS - WORDS, 64)))


# -- words and pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("json_too", [False, True])
def test_tokens_are_added_behind_the_words(tmp_path, to_mlx, json_too):
    """<image> and <pad> get the ids that the config says, everything else is tokenised as SentencePiece does it."""
    import sentencepiece
    from transformers import AutoTokenizer, LlamaTokenizer

    source = write_folder(tmp_path / "llava", tensors())
    layout.write_tokenizer(source)
    if json_too:
        LlamaTokenizer.from_pretrained(source).save_pretrained(source)
    folder, figures = to_mlx(source)
    assert "missing" not in figures
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (WORDS + 2, WORDS + 1, 2)
    encode = sentencepiece.SentencePieceProcessor(model_proto=layout.sentencepiece_model()).encode
    text = "USER: a café\n2 dogs  ASSISTANT:"
    assert tokenizer(text).input_ids == [1, *encode(text)]
    assert tokenizer(f"{text}<image>").input_ids == [1, *encode(text), WORDS]


def test_the_policy_asks_as_the_authors_code_does(tmp_path, to_mlx):
    """The two halves of the prompt tokenised apart, one <s>, the image padded in CLIP's mean colour."""
    import sentencepiece

    source = write_folder(tmp_path / "llava", tensors())
    layout.write_tokenizer(source)
    policy = load(to_mlx(source)[0])
    encode = sentencepiece.SentencePieceProcessor(model_proto=layout.sentencepiece_model()).encode
    before, after = TEMPLATES["vicuna_v1"].replace("{question}", "Is there a dog?").split("<image>")
    assert policy.prompt_ids("Is there a dog?") == [1, *encode(before), *[WORDS] * 4, *encode(after)]
    assert policy.preprocessing.background == (122, 116, 104) and policy.preprocessing.aspect == "pad"


def test_the_chat_template_is_the_prompt_template(tmp_path, to_mlx):
    from transformers import AutoTokenizer

    source = write_folder(tmp_path / "llava", tensors())
    layout.write_tokenizer(source)
    tokenizer = AutoTokenizer.from_pretrained(to_mlx(source)[0])
    asked = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]}
    expected = TEMPLATES["vicuna_v1"].replace("{question}", "What?")
    assert tokenizer.apply_chat_template([asked], add_generation_prompt=True, tokenize=False) == expected
    again = [asked, {"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Big?"}]
    later = f"{expected} A dog.</s>USER: Big? ASSISTANT:"
    assert tokenizer.apply_chat_template(again, add_generation_prompt=True, tokenize=False) == later


def test_mlx_vlm_loads_the_folder_too(tmp_path, to_mlx):
    from mlx_vlm import load as load_upstream

    source = write_folder(tmp_path / "llava", tensors())
    layout.write_tokenizer(source)
    model, processor = load_upstream(str(to_mlx(source)[0]))
    assert_same(model, layout.authors_model())
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == WORDS


def test_a_tokenizer_of_another_model_is_refused(tmp_path, refusal):
    small = {name: array[:-1] if name in layout.VOCABULARY else array for name, array in tensors().items()}
    source = write_folder(tmp_path / "llava", small, AUTHORS | {"vocab_size": WORDS - 1})
    layout.write_tokenizer(source)
    assert "<image> and <pad> would get the ids [400, 401]" in refusal(source)
    (source / "tokenizer.model").write_bytes(b"not a tokenizer")
    assert "transformers cannot read the tokenizer" in refusal(source)


# -- LoRA folders -----------------------------------------------------------------------------------------------------

LAYERS = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "model.layers.1.self_attn.q_proj": (64, 64),
    "model.layers.0.mlp.down_proj": (64, 128),
    "model.layers.1.mlp.down_proj": (64, 128),
    **{f"{TOWER}encoder.layers.{block}.self_attn.q_proj": (64, 64) for block in range(3)},  # the authors' suffixes hit it too
}


@pytest.fixture
def lora(tmp_path):
    """A LoRA folder of the authors', its base (Vicuna: neither projector nor tower) and what must come out."""
    rest, tower = layout.split_tower(tensors())
    added = layout.write_lora(tmp_path / "lora", LAYERS)
    projector = {name: array for name, array in rest.items() if PROJECTOR in name}
    trained = {f"base_model.model.{name}": array + 1 for name, array in projector.items()}
    write_torch(tmp_path / "lora" / "non_lora_trainables.bin", trained)
    (tmp_path / "lora" / "config.json").write_text(json.dumps(AUTHORS))
    words = {name: array for name, array in rest.items() if PROJECTOR not in name}
    base = write_folder(tmp_path / "vicuna", words, {"model_type": "llama", "vocab_size": WORDS})
    clip = layout.write_tower(tmp_path / "clip", tower)
    merged = tensors() | {name: tensors()[name] + change for name, change in added.items()}
    expected = merged | {name: array + 1 for name, array in projector.items()}
    return tmp_path / "lora", ["--base", base, "--vision-tower", clip], expected


def test_a_lora_is_merged_and_its_projector_kept(tmp_path, to_mlx, lora):
    source, arguments, expected = lora
    folder, figures = to_mlx(source, *arguments, "--verify")
    found = layout.authors_tensors(loaded(folder))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)
    assert "with the changes of" in figures["base"]


def test_a_lora_is_merged_in_pieces_and_into_float16_once(tmp_path, to_mlx, convert, lora, monkeypatch):
    source, arguments, _ = lora
    monkeypatch.setattr("mlx_visalign.convert.io.assembled.AT_ONCE", 640)
    output = tmp_path / "half"
    convert("llava_original", "--hf-path", source, "--mlx-path", output, *arguments)
    found = layout.authors_tensors(loaded(output), np.float16)
    whole, _ = to_mlx(source, *arguments)
    for name, array in layout.authors_tensors(loaded(whole)).items():
        assert np.array_equal(found[name], array.astype(np.float16)), name


def test_a_lora_on_a_llava_takes_its_tower_and_its_projector(tmp_path, to_mlx, lora):
    source, _, expected = lora
    base = write_folder(tmp_path / "llava", tensors())
    found = layout.authors_tensors(loaded(to_mlx(source, "--base", base)[0]))
    assert all(np.allclose(found[name], array, rtol=0, atol=1e-6) for name, array in expected.items())
    (source / "non_lora_trainables.bin").unlink()
    found = layout.authors_tensors(loaded(to_mlx(source, "--base", base)[0]))
    assert all(np.array_equal(found[name], tensors()[name]) for name in tensors() if PROJECTOR in name)


def test_a_projector_alone_is_put_on_its_base(tmp_path, to_mlx, lora):
    source, arguments, expected = lora
    for name in ("adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin"):
        (source / name).unlink()
    write_torch(source / "mm_projector.bin", {name: array for name, array in expected.items() if PROJECTOR in name})
    found = layout.authors_tensors(loaded(to_mlx(source, *arguments)[0]))
    for name, array in tensors().items():
        assert np.array_equal(found[name], expected[name] if PROJECTOR in name else array), name


# -- what is missing or does not fit ----------------------------------------------------------------------------------


def test_a_lora_without_a_base_or_a_projector_is_refused(lora, refusal):
    source, arguments, _ = lora
    assert "give the one it was trained on with --base" in refusal(source)
    (source / "non_lora_trainables.bin").unlink()
    assert "Without it the model cannot see" in refusal(source, *arguments)


def test_a_wrong_base_is_refused(tmp_path, lora, refusal):
    source, _, _ = lora
    shutil.rmtree(source)
    layout.write_lora(source, {"model.layers.0.self_attn.q_proj": (64, 32)})
    (source / "config.json").write_text(json.dumps(AUTHORS))
    base = write_folder(tmp_path / "llava", tensors())
    assert "of shape (64, 32), its base has (64, 64): use the right base" in refusal(source, "--base", base)
    layout.write_lora(source, {f"model.layers.{block}.self_attn.q_proj": (64, 64) for block in range(3)})
    assert "does not fit its base: unknown name 'model.layers.2" in refusal(source, "--base", base)
    assert "omit --base" in refusal(base, "--base", base)


def test_renamed_lora_tensors_and_an_absurd_rank_are_refused(tmp_path, refusal):
    base = write_folder(tmp_path / "llava", tensors())
    source = tmp_path / "lora"
    layout.write_lora(source, {"model.layers.0.self_attn.query": (64, 64)})
    (source / "config.json").write_text(json.dumps(AUTHORS))
    assert "model.layers.0.self_attn.q" in refusal(source, "--base", base)
    layout.write_lora(source, {"model.layers.0.self_attn.q_proj": (64, 64)})
    config = json.loads((source / "adapter_config.json").read_text()) | {"r": 10**9}
    (source / "adapter_config.json").write_text(json.dumps(config))
    assert "matrices of rank 2, adapter_config.json says r = 1000000000" in refusal(source, "--base", base)


def test_the_tower_must_be_somewhere_and_once(tmp_path, refusal):
    rest, tower = layout.split_tower(tensors())
    clip = layout.write_tower(tmp_path / "clip", tower)
    gone = write_folder(tmp_path / "gone", rest, AUTHORS | {"mm_vision_tower": "/home/them/clip"})
    assert "/home/them/clip was not found: give its folder with --vision-tower" in refusal(gone)
    assert "the hub cannot be reached" in refusal(gone, "--vision-tower", "nobody-here/nothing-there")
    whole = write_folder(tmp_path / "whole", tensors())
    assert "has its own vision tower" in refusal(whole, "--vision-tower", clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, "LLaVA-1.5 has 'mlp2x_gelu'"),
        ({"mm_projector_type": ["linear"]}, "LLaVA-1.5 has 'mlp2x_gelu'"),
        ({"model_type": "llava_mistral"}, "LLaVA-1.5 has 'llava_llama'"),
        ({"mm_use_im_start_end": True}, "this model is not supported"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is the text 'anyres', LLaVA-1.5 has 'pad'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mlx-vlm would silently compute 'default'"),
        ({"mm_vision_select_layer": [-2, -5]}, "only one vision_feature_layer"),
        ({"text_config": {}}, "Use `visalign convert llava`"),
        ({"vocab_size": WORDS + 3}, f"config.json has a vocab_size of {WORDS + 3}"),
        ({"vocab_size": "many"}, "vocab_size should be a whole number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of the type 'linear'"),
        ({"visalign": "yes"}, "visalign should be an object"),
    ],
)
def test_other_models_are_refused(tmp_path, refusal, change, message):
    assert message in refusal(write_folder(tmp_path / "llava", tensors(), AUTHORS | change))


@pytest.mark.parametrize("missing", ["mm_vision_tower", "mm_projector_type"])
def test_a_language_model_alone_is_refused(tmp_path, refusal, missing):
    config = {name: value for name, value in AUTHORS.items() if name != missing}
    assert "config.json: " in refusal(write_folder(tmp_path / "llava", tensors(), config))


def test_a_missing_shard_a_tensor_twice_and_a_nan_are_refused(tmp_path, refusal):
    source = write_folder(tmp_path / "llava", {})
    (source / "model.safetensors").unlink()
    names = sorted(tensors())
    for number, part in ((1, names[:40]), (2, names[39:])):
        write_torch(source / f"pytorch_model-{number:05d}-of-00002.bin", {name: tensors()[name] for name in part})
    assert f"{names[39]} is in two files" in refusal(source)
    (source / "pytorch_model-00001-of-00002.bin").unlink()
    assert "pytorch_model-00001-of-00002.bin is missing" in refusal(source)
    broken = tensors()["lm_head.weight"].copy()
    broken[7, 7] = np.nan
    shutil.rmtree(source)
    assert "lm_head.weight holds numbers that are not finite" in refusal(
        write_folder(source, tensors() | {"lm_head.weight": broken})
    )


# -- the way back -----------------------------------------------------------------------------------------------------


@pytest.fixture
def there_and_back(tmp_path, convert):
    """MLX -> the authors' layout -> MLX -> Hugging Face, all in float16; returns the three folders."""

    def run(mlx: Path) -> tuple[Path, Path, Path]:
        original, again, hf = (tmp_path / name for name in ("original", "again", "hf again"))
        convert("export", "--mlx-path", mlx, "--hf-path", original, "--layout", "original", "--verify")
        convert("llava_original", "--hf-path", original, "--mlx-path", again, "--verify")
        convert("export", "--mlx-path", again, "--hf-path", hf)
        return original, again, hf

    return run


def test_hugging_face_to_original_and_back_is_exact(tmp_path, convert, there_and_back):
    """Rows that nobody could recreate lie in the sidecar; heads of another width in our section of the config."""
    vision = VISION | {"num_attention_heads": 4}
    config = layout.HUGGING_FACE | {"vision_config": vision}
    model = layout.random_llava(7, config)
    arrays = hf_tensors(model, "classic")
    source = write_folder(tmp_path / "hf", arrays, config)
    convert("llava", "--hf-path", source, "--mlx-path", tmp_path / "mlx")
    original, again, hf = there_and_back(tmp_path / "mlx")
    assert_same(loaded(again), loaded(tmp_path / "mlx"))
    returned = load_file(hf / "model.safetensors")
    assert returned.keys() == arrays.keys() and all(np.array_equal(returned[name], arrays[name]) for name in arrays)
    for name in ("text_config", "vision_config", "image_token_index", "vision_feature_layer"):
        assert read_json(again / "config.json")[name] == read_json(tmp_path / "mlx" / "config.json")[name]
    saved = load_file(original / "model.safetensors")
    assert saved.keys() == tensors().keys() and {saved[name].shape for name in layout.VOCABULARY} == {(WORDS, 64)}


def test_original_to_mlx_and_back_is_exact(tmp_path, convert, there_and_back):
    arrays = layout.authors_tensors(layout.authors_model(), np.float16)
    source = write_folder(tmp_path / "llava", arrays)
    layout.write_tokenizer(source)
    convert("llava_original", "--hf-path", source, "--mlx-path", tmp_path / "mlx")
    original, again, _ = there_and_back(tmp_path / "mlx")
    returned = load_file(original / "model.safetensors")
    assert returned.keys() == arrays.keys() and all(np.array_equal(returned[name], arrays[name]) for name in arrays)
    told = ("mm_vision_select_layer", "image_aspect_ratio", "vocab_size", "rope_theta", "rms_norm_eps", "model_type")
    config = read_json(original / "config.json")
    assert {name: config[name] for name in told} == {name: AUTHORS[name] for name in told}
    assert_same(loaded(again), loaded(tmp_path / "mlx"))


def test_the_tokenizer_loses_its_two_tokens_on_the_way_back(tmp_path, convert, there_and_back):
    from transformers import AutoTokenizer, LlamaTokenizer

    source = write_folder(tmp_path / "llava", tensors())
    layout.write_tokenizer(source)
    convert("llava_original", "--hf-path", source, "--mlx-path", tmp_path / "mlx")
    original, again, _ = there_and_back(tmp_path / "mlx")
    tokenizer = LlamaTokenizer.from_pretrained(original)
    assert (len(tokenizer), tokenizer.pad_token) == (WORDS, "<unk>")
    assert (original / "tokenizer.model").read_bytes() == layout.sentencepiece_model()
    text = "USER: a café <image>\nIs there a dog?"
    before, after = (AutoTokenizer.from_pretrained(folder)(text).input_ids for folder in (tmp_path / "mlx", again))
    assert before == after and WORDS in after


def test_a_sidecar_of_another_model_is_refused(tmp_path, convert, refusal):
    convert("llava_original", "--hf-path", write_folder(tmp_path / "llava", tensors()), "--mlx-path", tmp_path / "mlx")
    convert("export", "--mlx-path", tmp_path / "mlx", "--hf-path", tmp_path / "back", "--layout", "original")
    save_file({"lm_head.weight": np.zeros((48, 32), np.float16)}, tmp_path / "back" / "vocabulary_rows.safetensors")
    assert "vocabulary_rows.safetensors does not fit model.embed_tokens.weight" in refusal(tmp_path / "back")
    save_file({"lm_head.weight": np.array(1.0, np.float16)}, tmp_path / "back" / "vocabulary_rows.safetensors")
    assert "holds something other than matrix rows" in refusal(tmp_path / "back")


@pytest.mark.parametrize("damage", [{"added_tokens": 5}, {"added_tokens": [5]}, {}])
def test_a_damaged_tokenizer_cannot_go_back(tmp_path, convert, damage):
    source = write_folder(tmp_path / "llava", tensors())
    layout.write_tokenizer(source)
    convert("llava_original", "--hf-path", source, "--mlx-path", tmp_path / "mlx")
    (tmp_path / "mlx" / "tokenizer.json").write_text(json.dumps(damage))
    arguments = ("--mlx-path", tmp_path / "mlx", "--hf-path", tmp_path / "back", "--layout", "original")
    assert "was not written by transformers" in convert("export", *arguments, refused=True)


def test_an_image_token_among_the_words_cannot_go_back(tmp_path, convert):
    from hf_layouts import write_hf

    convert("llava", "--hf-path", write_hf(tmp_path / "hf"), "--mlx-path", tmp_path / "mlx")
    arguments = ("--mlx-path", tmp_path / "mlx", "--hf-path", tmp_path / "back", "--layout", "original")
    assert "<image> directly follows the original vocabulary" in convert("export", *arguments, refused=True)


# -- transformers and torch -------------------------------------------------------------------------------------------


@pytest.mark.reference
def test_original_to_mlx_to_hugging_face_gives_transformers_logits(tmp_path, convert):
    """torch writes the authors' shards; what comes back loads in transformers and computes what its own model does."""
    import torch
    from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration

    config = layout.HUGGING_FACE | {"image_seq_length": 4}
    reference = LlavaForConditionalGeneration(LlavaConfig.from_dict(config)).eval()
    state = {name: torch.tensor(array) for name, array in hf_tensors(layout.authors_model(), "classic", np.float32).items()}
    reference = LlavaForConditionalGeneration.from_pretrained(None, config=reference.config, state_dict=state)
    source = tmp_path / "llava"
    source.mkdir()
    renamed = {layout.authors_name(name): value for name, value in state.items()}
    for name in layout.VOCABULARY:
        renamed[name] = renamed[name][:WORDS].clone()
    for number, part in enumerate((sorted(renamed)[::2], sorted(renamed)[1::2]), 1):
        torch.save({name: renamed[name] for name in part}, source / f"pytorch_model-{number:05d}-of-00002.bin")
    (source / "config.json").write_text(json.dumps(AUTHORS))
    layout.write_tokenizer(source)
    convert("llava_original", "--hf-path", source, "--mlx-path", tmp_path / "mlx", "--dtype", "float32")
    convert("export", "--mlx-path", tmp_path / "mlx", "--hf-path", tmp_path / "hf")
    loaded_back = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = [1, 5, 9, *[WORDS] * 4, *AutoTokenizer.from_pretrained(tmp_path / "hf")("Is there a dog?").input_ids[1:]]
    pixels = torch.tensor(np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32))
    with torch.no_grad():
        ours, theirs = (model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits for model in (loaded_back, reference))
    assert float((ours - theirs).abs().max()) <= PARITY
    from mlx_visalign.convert.steps.parity import mlx_logits

    mlx = mlx_logits(tmp_path / "mlx", ids, pixels.numpy().transpose(0, 2, 3, 1))
    assert float(np.abs(mlx - theirs[0].numpy()).max()) <= PARITY


# -- what a training must have left -----------------------------------------------------------------------------------


def checkpoint(lora, **settings):
    """An intermediate checkpoint of a LoRA training: its projector is saved at the end alone."""
    source, arguments, expected = lora
    (source / "non_lora_trainables.bin").unlink()
    (source / "config.json").write_text(json.dumps(AUTHORS | settings))
    return source, arguments, expected


@pytest.mark.parametrize("settings", [{"mm_projector_lr": 2e-5}, {"tune_mm_mlp_adapter": True}])
def test_a_checkpoint_without_its_trained_projector_is_refused(tmp_path, to_mlx, refusal, lora, settings, capsys):
    source, _, _ = checkpoint(lora, **settings)
    base = write_folder(tmp_path / "llava", tensors())
    said = refusal(source, "--base", base)
    name = next(iter(settings))
    assert name in said and "non_lora_trainables.bin" in said and "--base-projector" in said
    folder, figures = to_mlx(source, "--base", base, "--base-projector")
    assert "though the projector was trained" in figures["projector"]
    found = layout.authors_tensors(loaded(folder))
    assert all(np.array_equal(found[name], tensors()[name]) for name in tensors() if PROJECTOR in name)
    to_ours = ["peft", "--adapter-path", str(source), "--output", str(tmp_path / "ours")]
    assert main(to_ours) == 2 and "--base-projector" in capsys.readouterr().err
    assert main([*to_ours, "--base-projector"]) == 2  # one thing further
    assert "not in the language model's blocks" in capsys.readouterr().err
    with pytest.raises(UserError, match="--base-projector"):
        fuse(folder, source, tmp_path / "fused")
    assert "though the projector" in fuse(folder, source, tmp_path / "fused", "float32", base_projector=True)["projector"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({}, "the base's"), ({"mm_projector_lr": None}, "the base's"), ({"freeze_mm_mlp_adapter": True}, None)],
)
def test_where_it_cannot_be_told_the_bases_projector_is_said(tmp_path, to_mlx, lora, settings, says):
    source, _, _ = checkpoint(lora, **settings)
    _, figures = to_mlx(source, "--base", write_folder(tmp_path / "llava", tensors()))
    assert says in figures["projector"] if says else "projector" not in figures


def test_what_was_trained_beside_a_lora_but_is_no_projector_does_not_count(tmp_path, refusal, lora):
    source, _, _ = checkpoint(lora, mm_projector_lr=2e-5)
    norm = {"base_model.model.model.norm.weight": tensors()["model.norm.weight"]}
    write_torch(source / "non_lora_trainables.bin", norm)
    assert "no projector" in refusal(source, "--base", write_folder(tmp_path / "llava", tensors()))


def test_a_projector_by_its_lone_name_beside_a_lora_is_merged_by_all(tmp_path, to_mlx, lora):
    source, _, expected = checkpoint(lora, mm_projector_lr=2e-5)
    write_torch(source / "mm_projector.bin", {name: array for name, array in expected.items() if PROJECTOR in name})
    base = write_folder(tmp_path / "llava", tensors())
    whole, _ = to_mlx(base)
    fuse(whole, source, tmp_path / "fused", "float32")
    for folder in (to_mlx(source, "--base", base)[0], tmp_path / "fused"):
        found = layout.authors_tensors(loaded(folder))
        assert all(np.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected), folder


# -- whose words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("vicuna", {"conv_version": "llava_llama_3"}, "conv_version) states the chat format of Llama 3"),
        ("vicuna", {"_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2"}, "states the chat format of Mistral"),
        ("llava-llama-2-7b-chat", {}, "states the chat format of Mistral and Llama 2"),
    ],
)
def test_a_conversation_that_is_not_vicunas_is_refused(tmp_path, to_mlx, refusal, name, settings, says):
    source = write_folder(tmp_path / name, tensors(), AUTHORS | settings)
    assert says in refusal(source)
    _, figures = to_mlx(source, "--template", "vicuna_v1")
    assert figures["template"].startswith("vicuna_v1 (as requested, although")


def test_the_new_chat_template_is_that_of_the_template_asked_for(tmp_path, to_mlx):
    source = write_folder(tmp_path / "original", tensors())
    layout.write_tokenizer(source)
    folder, _ = to_mlx(source, "--template", "hf")
    assert stated_by(folder, json.loads((folder / "config.json").read_text())).exact == "hf"


def test_quantised_weights_are_refused_in_this_layout_too(tmp_path, refusal):
    source = write_folder(tmp_path / "original", tensors(), AUTHORS | {"quantization_config": {"quant_method": "gptq"}})
    assert "quantised" in refusal(source)


def test_a_pointer_among_the_words_is_named(tmp_path, refusal):
    source = write_folder(tmp_path / "original", tensors())
    layout.write_tokenizer(source)
    (source / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n")
    assert "tokenizer.model is a Git LFS pointer" in refusal(source)
