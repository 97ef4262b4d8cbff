"""What a model's small files contradict, and Git LFS pointers in the place of every kind of file that is read."""

import json
import shutil
from pathlib import Path

import pytest
from hf_layouts import TINY, write_talking
from sample_photos import write_photos

from mlx_visalign.cli.main import main
from mlx_visalign.convert.cli import main as convert
from mlx_visalign.data.records import Pair, Prompt, write_jsonl
from mlx_visalign.inference.policy import load
from mlx_visalign.models.model_folder import missing_parts, what_is_wrong
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json

AUTHORS = Path(__file__).parents[1] / "golden/peft_authors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 4991370968\n"


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def change(folder, file, place, value):
    """Another value at a dotted place of a JSON file; None leaves it out."""
    content = json.loads((folder / file).read_text())
    *outer, last = place.split(".")
    inner = content
    for part in outer:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    (folder / file).write_text(json.dumps(content))


def wrong(folder):
    return what_is_wrong(folder, read_json(folder / "config.json"))


# -- Git LFS ----------------------------------------------------------------------------------------------------------

FILES = {
    **{
        name: ("generate --image photos/0.png --model model", f"model/{name}")
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    },
    **{
        name: ("convert llava --hf-path model --mlx-path out", f"model/{name}")
        for name in ("preprocessor_config.json", "processor_config.json", "generation_config.json", "special_tokens_map.json")
    },
    "tokenizer.model": ("convert llava --hf-path model --mlx-path out", "model/tokenizer.model"),
    "an index": ("convert llava --hf-path model --mlx-path out", "model/model.safetensors.index.json"),
    "torch's weights": ("convert llava --hf-path torch --mlx-path out", "torch/pytorch_model-00001-of-00002.bin"),
    "an adapter": ("generate --model tiny --image photos/0.png --adapter-path adapter", "adapter/adapters.safetensors"),
    "an adapter's config": ("eval --adapter-path adapter", "adapter/adapter_config.json"),
    "PEFT's weights": ("convert peft --adapter-path peft --output out", "peft/adapter_model.safetensors"),
    "PEFT's pickle": ("fuse --model tiny --adapter-path peft --mlx-path out", "peft/adapter_model.bin"),
    "an authors' projector": ("fuse --model tiny --adapter-path authors --mlx-path out", "authors/non_lora_trainables.bin"),
    "pairs": ("check --model tiny --data pairs.jsonl", "pairs.jsonl"),
    "pairs as JSON": ("check --model tiny --data pairs.json", "pairs.json"),
    "prompts": ("run seva --model tiny --prompts prompts.jsonl --output out", "prompts.jsonl"),
    "a recipe": ("run -c recipe.yaml --output out", "recipe.yaml"),
    "annotations": ("eval --model tiny --annotations truth.json", "truth.json"),
    "a vocabulary": ("eval --model tiny --annotations good.json --vocabulary words.json", "words.json"),
    "an image": ("generate --model tiny --image photos/1.png", "photos/1.png"),
    "an image among photos": ("run seva --model model --images photos --output out", "photos/1.png"),
    "a CLIP's weights": ("run csr --model model --images photos --output out --set clip=clip", "clip/model.safetensors"),
    "a CLIP's words": ("convert clip --hf-path clip --mlx-path out", "clip/tokenizer.json"),
    "a CLIP's weights to convert": ("convert clip --hf-path clip --mlx-path out", "clip/model.safetensors"),
    "a model to upload": ("upload --path model --upload-repo me/it --dry-run", "model/model.safetensors"),
    "an adapter to upload": ("upload --path adapter --upload-repo me/it", "adapter/adapters.safetensors"),
}


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """One sound input of each kind, next to each other."""
    folder = tmp_path_factory.mktemp("kit")
    write_photos(folder / "photos", 2)
    write_jsonl(folder / "pairs.jsonl", [Pair("p", ("photos/0.png",), "What is there?", "A circle.", "A star.")])
    write_jsonl(folder / "prompts.jsonl", [Prompt("q", "photos/0.png", "What is there?", "describe")])
    (folder / "good.json").write_text('{"photos/0.png": ["dog"]}')
    (folder / "recipe.yaml").write_text("method: seva\nimages: photos\n")
    shutil.copytree(TINY, folder / "model")
    shutil.copytree(TINY.parent / "clip", folder / "clip")
    write_talking(folder / "torch")
    (folder / "torch/model.safetensors").unlink()
    for name in ("adapter", "peft"):
        (folder / name).mkdir()
    shutil.copytree(AUTHORS, folder / "authors")
    lora = {"rank": 4, "scale": 1.0, "keys": []}
    (folder / "adapter/adapter_config.json").write_text(json.dumps({"lora_parameters": lora}))
    (folder / "peft/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_pointer_in_a_files_place_is_named_with_its_cure(kit, tmp_path, monkeypatch, capsys, name):
    command, file = FILES[name]
    shutil.copytree(kit, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).write_text(POINTER)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert "Git LFS pointer" in said and "git lfs pull" in said and file.rpartition("/")[2] in said, said
    assert "Traceback" not in said
    assert command.startswith("run") or not (tmp_path / "out").exists()


def test_several_pointers_are_all_named(model):
    for name in ("tokenizer.json", "model.safetensors", "merges.txt"):
        (model / name).write_text(POINTER)
    found = wrong(model)
    assert len(found) == 3 and all("Git LFS pointer" in each for each in found) and "git lfs pull" in found[0]


def test_a_pointer_that_nobody_needs_is_passed_over(model):
    """People clone without the .bin files where there are safetensors."""
    (model / "pytorch_model.bin").write_text(POINTER)
    (model / "training_args.bin").write_text(POINTER)
    assert wrong(model) == []


# -- what does not belong together ------------------------------------------------------------------------------------

MISFITS = {
    "an image token beyond": (
        "config.json",
        "image_token_index",
        640,
        "image_token_index is 640, but the embedding has 640 rows",
    ),
    "another image token": (
        "config.json",
        "image_token_index",
        7,
        "<image> is token 4 in the tokenizer, but 7 in config.json",
    ),
    "a pad token beyond": ("config.json", "pad_token_id", 32001, "pad_token_id is 32001"),
    "an end token beyond": ("config.json", "text_config.eos_token_id", [2, 700], "text_config.eos_token_id is 700"),
    "a beginning beyond": ("generation_config.json", "bos_token_id", 640, "generation_config.json: bos_token_id is 640"),
    "a smaller model": ("config.json", "text_config.vocab_size", 600, "the tokenizer is larger than the model"),
    "another size": ("preprocessor_config.json", "crop_size", {"height": 224, "width": 224}, "of 224 pixels"),
    "another size as a number": ("preprocessor_config.json", "crop_size", 24, "makes images of 24 pixels"),
    "another tower": ("config.json", "vision_config.image_size", 56, "the tower takes 56"),
    "another patch": ("processor_config.json", "patch_size", 14, "patch_size 14, but config.json's vision_config says 8"),
    "no mean": ("preprocessor_config.json", "image_mean", None, "has no image_mean"),
    "no deviation": ("preprocessor_config.json", "image_std", [], "has no image_std"),
    "bitsandbytes": (
        "config.json",
        "quantization_config",
        {"quant_method": "bitsandbytes"},
        "quantised by the text 'bitsandbytes'",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_files_that_contradict_each_other_are_told(model, name):
    file, place, value, says = MISFITS[name]
    assert wrong(model) == []
    change(model, file, place, value)
    assert any(says in each for each in wrong(model)), wrong(model)
    with pytest.raises(UserError) as told:
        load(model)
    assert says in str(told.value) and str(model) in str(told.value)


def test_a_tokenizer_without_the_image_is_told(model):
    words = json.loads((model / "tokenizer.json").read_text())
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "<image>"]
    words["model"]["vocab"]["<picture>"] = words["model"]["vocab"].pop("<image>")
    (model / "tokenizer.json").write_text(json.dumps(words))
    assert wrong(model) == ["the tokenizer has no token <image>, which stands for the image. Use this model's own tokenizer."]


def test_added_tokens_of_a_tokenizer_without_json_are_known(model):
    (model / "tokenizer.json").unlink()
    change(model, "tokenizer_config.json", "added_tokens_decoder", {"4": {"content": "<image>"}, "700": {"content": "<more>"}})
    assert len(wrong(model)) == 1 and "'<more>' is its token 700" in wrong(model)[0]


@pytest.mark.parametrize("content", ["{", "[]", "not json", '{"model": {"type": "BPE"}}'])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_cannot_be_read_are_told(model, file, content):
    (model / file).write_text(content)
    if file != "tokenizer.json" and content.startswith('{"'):
        return  # JSON, and whatever else it says
    assert len(wrong(model)) == 1 and file in wrong(model)[0]


def test_all_that_is_wrong_is_told_at_once(model, capsys):
    for name in ("an image token beyond", "another size", "another patch", "no deviation"):
        change(model, *MISFITS[name][:3])
    assert main(["convert", "llava", "--hf-path", str(model), "--mlx-path", str(model.parent / "out")]) == 2
    said = capsys.readouterr().err
    assert "5 things are wrong" in said and all(MISFITS[name][3] in said for name in ("another size", "another patch"))
    assert not (model.parent / "out").exists()


def test_of_many_missing_shards_twenty_are_named(model):
    (model / "model.safetensors").unlink()
    names = [f"model-{number:05d}-of-00030.safetensors" for number in range(1, 31)]
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("abcdefghijklmnopqrstuvwxyzABCD", names, strict=True))})
    )
    assert len(wrong(model)) == 30
    with pytest.raises(UserError, match=r"30 things are wrong(?s:.)*00020-of-00030(?s:.)*and 10 more"):
        load(model)


def test_wrong_kinds_in_a_config_are_for_others_to_say(model):
    for place, value in (("text_config", "llama"), ("vision_config", 5), ("image_token_index", "x"), ("pad_token_id", True)):
        change(model, "config.json", place, value)
    assert wrong(model) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_conversion_says_aloud_what_is_missing(tmp_path, capsys, name):
    source = write_talking(tmp_path / "hf")
    (source / name).unlink()
    (source / "processor_config.json").unlink()
    assert convert(["llava", "--hf-path", str(source), "--mlx-path", str(tmp_path / "mlx"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"Warning: the new folder lacks {name}: {source} has none. Copy" in err and json.loads(out)["missing"].startswith(
        name
    )
    assert missing_parts(tmp_path / "mlx") == [name]


def test_the_embedded_models_are_whole():
    assert wrong(TINY) == [] and missing_parts(TINY) == []
