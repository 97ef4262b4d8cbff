import json
import os

import pytest
from PIL import Image

from mlx_visalign.errors import UserError
from mlx_visalign.links import following_links
from mlx_visalign.pair_formats import read_pairs
from mlx_visalign.records import Pair, write_jsonl

TURN = [{"from": "human", "value": "<image>\nWhat is it?"}]
USER = [{"role": "user", "content": "What is it?"}]
TEMPLATED = "A chat. The assistant answers. USER: <image>\nWhat is it? ASSISTANT:"


def said(text):
    return [{"role": "assistant", "content": text}]


def llava(question="<image>\nWhat is it?", **changes):
    human = {"from": "human", "value": question}
    return {
        "id": "000000000009",
        "image": "a.png",
        "conversations": [human, {"from": "gpt", "value": "A dog.</s>"}],
        "rejected_conversations": [human, {"from": "gpt", "value": "A cat."}],
        **changes,
    }


ROWS = {
    "TRL conversations": {"images": ["a.png"], "prompt": USER, "chosen": said("A dog."), "rejected": said("A cat.")},
    "TRL plain text": {"image": "a.png", "prompt": "<image>What is it?", "chosen": "A dog.", "rejected": "A cat."},
    "LLaVA turns": llava(),
    "SeVa": {"chosen": "A dog.", "reject": "A cat.", "question": "What is it?", "image_id": "a.png"},
    "RLAIF-V": {"image_path": "a.png", "question": "What is it?", "chosen": "A dog.", "rejected": "A cat.", "idx": 3},
}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "photos/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def write(path, *rows, lines=False):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_recognised_and_read(folder, name, lines):
    pairs, recognised = read_pairs(write(folder / "data.json", ROWS[name], ROWS[name], lines=lines))
    image = (str(folder / "a.png"),)
    assert recognised == name
    assert pairs == [Pair(f"data-{row}", image, "What is it?", "A dog.", "A cat.") for row in (1, 2)]


@pytest.mark.parametrize(
    "row",
    [
        llava(TEMPLATED),
        llava("What is it?\n<image>"),
        {**ROWS["TRL conversations"], "image": "a.png"},
        {**ROWS["TRL plain text"], "images": ["a.png"]},
        {**ROWS["RLAIF-V"], "image": "a.png", "image_path": "elsewhere.png"},
        {**ROWS["RLAIF-V"], "image": {"bytes": "..."}},
    ],
)
def test_variants_of_a_format_give_the_same_pair(folder, row):
    (pair,), _ = read_pairs(write(folder / "data.json", row))
    assert pair == Pair("data-1", (str(folder / "a.png"),), "What is it?", "A dog.", "A cat.")


def test_our_own_file_comes_back_but_for_its_reference_logps(folder):
    ours = Pair("p7", ("photos/b.png",), "Q", "A", "B", "csr", 2, 0.5, 0.25, 0.1, 3, (-1.0, -2.0))
    write_jsonl(folder / "pairs.jsonl", [ours])
    (pair,), _ = read_pairs(folder / "pairs.jsonl")
    assert pair == Pair("p7", (str(folder / "photos/b.png"),), "Q", "A", "B", "csr", 2, 0.5, 0.25, 0.1, 3)


def test_images_may_stand_in_a_folder_of_their_own(folder):
    path = write(folder / "data.json", llava(image="b.png"), llava(image=str(folder / "photos/b.png")))
    pairs, _ = read_pairs(path, images=folder / "photos")
    assert [pair.images for pair in pairs] == [(str(folder / "photos/b.png"),)] * 2


def test_a_linked_image_folder_is_followed_only_if_that_is_wanted(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    Image.new("RGB", (4, 4)).save(elsewhere / "c.png")
    os.symlink(elsewhere, folder / "coco")
    path = write(folder / "data.json", llava(image="coco/c.png"))
    with pytest.raises(UserError, match=r"row 1: the image coco/c\.png .* leads out of .*, to .*disk.*--follow-links"):
        read_pairs(path)
    with following_links():
        (pair,), _ = read_pairs(path)
    assert pair.images == (str(folder / "coco/c.png"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (llava(image="../a.png"), "data.json: row 2: the image ../a.png lies outside"),
        (llava(image="photos/../../a.png"), "lies outside"),
        (llava(image="/etc/hostname"), "lies outside .* Name the folder of the images with --images"),
        (llava(image="none.png"), "row 2: there is no image .*none.png. Name the folder"),
        (llava(image="a\0.png"), "there is no image"),
        (llava(image="a" * 5000), "there is no image"),
        (llava(image=""), "there is no image"),
        (llava(image=None), "row 2: no image in this row; pairs need one"),
        (llava(image=[]), r"row 2: no image in this row \(image is empty\)"),
        (llava(conversations=TURN), "conversations must be one turn from 'human' and one from 'gpt'"),
        (ROWS["SeVa"], r"conversations is missing .* expected a row like the others \(LLaVA turns\)"),
        ("text", "row 2: expected a JSON object, got the text 'text'"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(folder, row, message):
    with pytest.raises(UserError, match=message):
        read_pairs(write(folder / "data.json", llava(), row))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no pairs"),
        ("[]", "holds no pairs"),
        ("[", "data.json: not valid JSON"),
        ('{"text": 1}', "data.json:1: the columns text are no known preference format. Read are: images, prompt"),
        ("3", "data.json:1: expected a JSON object"),
        ('{"images": [], "prompt": "q", "chosen": "a", "rejected": "b"}', "data.json:1: no image in this row"),
    ],
)
def test_a_file_of_another_kind_is_refused(folder, content, message):
    (folder / "data.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_pairs(folder / "data.json")


@pytest.mark.reference
def test_datasets_and_trl_read_our_pairs(folder, monkeypatch):
    from datasets import Image as ImageFeature
    from datasets import List, load_dataset
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    rows = [
        Pair("1", ("a.png",), "What is it?", "A dog.", "A cat.", "seva", seed=1, reference_logps=(-1.0, -2.0)),
        Pair("2", (str(folder / "photos/b.png"),), "Who?", "A cat.", "A dog sits.", "seva"),
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    monkeypatch.chdir(folder)  # `datasets` looks relative image paths up in the working folder

    data = load_dataset("json", data_files="pairs.jsonl", split="train", cache_dir=folder / "cache")
    data = data.cast_column("images", List(ImageFeature()))

    processor = tiny_processor()
    batch = DataCollatorForVisionPreference(processor)([data[0], data[1]])
    answers = [
        processor.decode(ids[mask.bool()]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert answers == ["A dog . </s>", "A cat . </s>", "A cat . </s>", "A dog sits . </s>"]
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [4] * 4
    assert batch["pixel_values"].shape == (4, 3, 4, 4)


def tiny_processor():
    """A LLaVA processor with a word-level vocabulary and 4 image tokens for a 4 x 4 image."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "A", "dog", "cat", "sits", "."]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, extra_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessorPil(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})
    template = (
        "{% for message in messages %}"
        "{{ 'USER: ' if message.role == 'user' else 'ASSISTANT: ' }}"
        "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "{{ ' ' if message.role == 'user' else '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )
    return LlavaProcessor(images, wrapped, patch_size=2, vision_feature_select_strategy="full", chat_template=template)
