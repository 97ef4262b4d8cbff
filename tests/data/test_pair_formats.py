import json
import os

import pytest
from PIL import Image

from mlx_visalign.data.pair_formats import read_pairs
from mlx_visalign.data.records import Pair, write_jsonl
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import following_links

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
    ours = Pair("p7", ("photos/b.png",), "Q", "A", "B", "csr", 2, 0.5, 0.25, 0.1, 3, {"chosen": -1.0, "rejected": -2.0})
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
        ("", "contains no pairs"),
        ("[]", "contains no pairs"),
        ("[", "data.json: not valid JSON"),
        ('{"text": 1}', "data.json:1: the columns text match no known preference format. Known are: images, prompt"),
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
        Pair(
            "1",
            ("a.png",),
            "What is it?",
            "A dog.",
            "A cat.",
            "seva",
            seed=1,
            reference_logps={"chosen": -1.0, "rejected": -2.0},
        ),
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


# -- other people's rows ------------------------------------------------------------------------------------------------

GPT, GPT_CAT = {"from": "gpt", "value": "A dog."}, {"from": "gpt", "value": "A cat."}
MESSAGE, MESSAGE_CAT = {"role": "assistant", "content": "A dog."}, {"role": "assistant", "content": "A cat."}
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
FACTORY = {"conversations": [{"from": "human", "value": "<image>What is it?"}], "chosen": GPT, "rejected": GPT_CAT}
TRL = {"prompt": "What is it?", "chosen": "A dog.", "rejected": "A cat."}
WANTED = ("What is it?", "A dog.", "A cat.")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({**FACTORY, "images": ["a.png"]}, "LlamaFactory turns"),
        ({**FACTORY, "images": ["a.png"], "videos": None, "audios": [], "system": "", "tools": ""}, "LlamaFactory turns"),
        ({**FACTORY, "conversations": [{"from": "system", "value": ""}, *FACTORY["conversations"]], "images": "a.png"}, None),
        ({"messages": PARTS, "chosen": MESSAGE, "rejected": MESSAGE_CAT, "images": ["a.png"]}, "LlamaFactory messages"),
        ({"instruction": "What", "input": "is it?", "chosen": "A dog.", "rejected": "A cat.", "images": ["a.png"]}, None),
        ({"instruction": "<image>What is it?", "input": "", **TRL, "prompt": None, "images": ["a.png"]}, None),
        (
            {"images": ["a.png"], "chosen": [*PARTS, MESSAGE], "rejected": [*USER, MESSAGE_CAT]},
            "TRL conversations with the prompt in them",
        ),
        (
            {"images": ["a.png"], "prompt": USER, "chosen": [*USER, MESSAGE], "rejected": [*PARTS, MESSAGE_CAT]},
            "TRL conversations",
        ),
        ({"prompt": PARTS, "chosen": MESSAGE, "rejected": "A cat.", "image": "a.png"}, "TRL plain text"),
        (
            {
                "prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, PARTS[0]["content"][1]]}],
                "chosen": [MESSAGE],
                "rejected": [MESSAGE_CAT],
            },
            "TRL conversations",
        ),
    ],
)
def test_rows_of_other_trainers_are_read(folder, row, name):
    (pair,), recognised = read_pairs(write(folder / "data.json", row))
    assert pair.images == (str(folder / "a.png"),)
    assert (pair.prompt.replace("\n", " "), pair.chosen, pair.rejected) == WANTED
    assert name in (None, recognised)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": "a.png"},
        {"images": "a.png"},
        {"images": ["a.png"]},
        {"image": ["a.png"]},
        {"image": {"path": "a.png", "bytes": None}},
        {"images": [{"path": "a.png"}]},
        {"images": None, "image": "a.png"},
        {"images": ["a.png"], "image": None},
        {"images": [], "image": "a.png"},
        {"image_path": "a.png", "image": {"bytes": "iVBORw0K"}},
        {"image": "a.png", "image_id": 17},
        {"images": ["a.png"], "image": "./a.png", "conversations": None, "reject": None, "id": None},
    ],
)
def test_the_image_may_be_named_in_many_ways(folder, columns):
    (pair,), _ = read_pairs(write(folder / "data.json", {**TRL, **columns}))
    assert pair.images[0].endswith("a.png") and len(pair.images) == 1


SAID = [{"from": "human", "value": "What is it?"}, GPT]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        # images and their marks
        ({**TRL, "images": ["a.png", "a.png"]}, "images names 2 images; a pair must be about one image"),
        ({**TRL, "image": ["a.png", "a.png"]}, "image names 2 images"),
        ({**TRL, "prompt": "<image><image>What?", "image": "a.png"}, r"prompt has 2 image placeholders .* image names one"),
        (llava("<image>\n<image>\nWhat is it?"), r"conversations has 2 image placeholders \(<image>\), but image names one"),
        (
            {**FACTORY, "conversations": [{"from": "human", "value": "<image><image>"}], "images": "a.png"},
            "conversations has 2",
        ),
        (
            {**TRL, "prompt": [{"role": "user", "content": PARTS[0]["content"] * 2}], "images": ["a.png"]},
            "prompt has 2 image placeholders",
        ),
        (
            {"question": "<image> <image>?", "chosen": "a", "reject": "b", "image_id": "a.png"},
            "question has 2 .* image_id names",
        ),
        (
            {**TRL, "images": ["a.png"], "image": "photos/b.png"},
            "images and image name different images, a.png and photos/b.png",
        ),
        ({**TRL, "chosen": "A <image>.", "image": "a.png"}, "chosen: an answer may not contain <image>"),
        ({"question": "Q", "chosen": "a", "reject": "<image>", "image_id": "a.png"}, "reject: an answer may not contain"),
        (TRL, "no image in this row; pairs need one, in a column such as images or image"),
        ({**TRL, "images": None}, "no image in this row; pairs need one"),
        ({**TRL, "images": []}, r"no image in this row \(images is empty\)"),
        ({**FACTORY, "images": []}, "no image in this row"),
        ({k: v for k, v in llava().items() if k != "image"}, "no image in this row"),
        ({**TRL, "image": {"bytes": "iVBORw0K"}}, "image holds image data, not a file name"),
        ({**TRL, "image": {"url": "https://a/b.png"}}, "image holds a URL"),
        ({**TRL, "image": "https://a/b.png"}, "image is a URL, not a file"),
        ({**TRL, "image": "data:image/png;base64,iVBORw0K"}, "image is image data, not a file"),
        ({**TRL, "image": 5}, "image must be the name of an image file, got 5"),
        # another question on one side
        (
            {**llava(), "rejected_conversations": [{"from": "human", "value": "Who is it?"}, GPT_CAT]},
            "rejected_conversations asks a different question from conversations .*'Who is it[?]', not .*'What is it[?]'",
        ),
        (
            {"images": "a.png", "chosen": [*USER, MESSAGE], "rejected": [{**USER[0], "content": "?"}, MESSAGE_CAT]},
            "rejected asks",
        ),
        (
            {"images": "a.png", "prompt": "Who?", "chosen": [*USER, MESSAGE], "rejected": [MESSAGE_CAT]},
            "chosen asks .* from prompt",
        ),
        # turns and roles
        (llava(conversations=[*SAID, *SAID]), "conversations must be one turn .*, got 'human', 'gpt', 'human', 'gpt'"),
        (
            llava(rejected_conversations=[GPT_CAT]),
            "rejected_conversations must be one turn from 'human' and one from 'gpt', got 'gpt'",
        ),
        (llava(conversations=[{"from": "system", "value": "Be good."}, *SAID]), "conversations has a system turn"),
        ({**TRL, "prompt": [{"role": "system", "content": "x"}, *USER], "image": "a.png"}, "prompt has a system turn"),
        ({**TRL, "prompt": [MESSAGE], "image": "a.png"}, "prompt must be one turn from 'user', got 'assistant'"),
        (
            {**TRL, "prompt": [*USER, MESSAGE, *USER], "image": "a.png"},
            "prompt must be one turn .* 'user', 'assistant', 'user'",
        ),
        ({**TRL, "rejected": [], "image": "a.png"}, "rejected must be one turn from 'assistant', got none"),
        (
            llava(conversations=[{"from": "humna", "value": "?"}, GPT]),
            "conversations has a turn with the role 'humna'; expected",
        ),
        (llava(conversations=5), "conversations must be text or turns, got 5"),
        (llava(conversations=[{"text": "?"}]), "conversations must be turns, each with a role and a text, got an object"),
        ({**FACTORY, "images": "a.png", "system": "Be good."}, "system is set"),
        ({**FACTORY, "images": "a.png", "history": [["a", "b"]]}, "history is set"),
        ({**FACTORY, "images": "a.png", "videos": ["a.mp4"]}, "videos is set"),
        # templates
        ({**TRL, "prompt": "USER: a ASSISTANT: b USER: c ASSISTANT:", "image": "a.png"}, "prompt holds more than one turn"),
        (
            {"question": "Q", "chosen": "a", "reject": "b\nUSER: c ASSISTANT: d", "image_id": "a.png"},
            "reject holds more than one turn",
        ),
    ],
)
def test_a_row_that_contradicts_itself_is_refused_in_the_files_own_words(folder, row, message):
    with pytest.raises(UserError, match=rf"data\.json: row 1: .*{message}"):
        read_pairs(write(folder / "data.json", row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**TRL, "chosen": None, "image": "a.png"}, "chosen is null; expected a row like the others"),
        ({"prompt": "?", "choosen": "a", "rejected": "b"}, "chosen is missing.* Instead of 'choosen', did you mean 'chosen'"),
        ({**TRL, "prompt": None, "rejected": None}, "prompt is null and rejected is null"),
        (None, "expected a JSON object, got null"),
        ({**TRL, "image": ["a.png", "a.png"]}, "image names 2 images"),
    ],
)
def test_a_bad_row_among_good_ones_may_be_left_out(folder, row, message):
    path = write(folder / "data.jsonl", {**TRL, "image": "a.png"}, row, lines=True)
    with pytest.raises(UserError, match=rf"data\.jsonl:2: {message}.* --skip-bad"):
        read_pairs(path)
    assert len(read_pairs(path, skip_bad=True)[0]) == 1


def test_every_bad_row_is_named_with_all_that_is_wrong_in_it(folder):
    rows = [{**TRL, "image": f"none-{number}.png", "chosen": "A <image>."} for number in range(30)]
    with pytest.raises(UserError) as told:
        read_pairs(write(folder / "data.jsonl", {**TRL, "image": "a.png"}, "text", *rows, lines=True))
    assert str(told.value).startswith("31 of the 32 pairs cannot be used:\n") and len(told.value.each) == 1 + 2 * 30
    assert str(told.value).count("data.jsonl:") == 20 and "and 41 more" in str(told.value)


def test_a_templates_marks_and_a_reference_are_told_once(folder, capsys):
    asked = {"prompt": "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "image": "a.png"}
    row = {**asked, "chosen": "A dog.<|im_end|>", "rejected": "A cat.<|im_end|>", "ref_chosen_logps": -1.0}
    pairs, _ = read_pairs(write(folder / "data.json", row, row, row))
    assert {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs} == {WANTED}
    assert capsys.readouterr().err.splitlines() == [
        "3 prompts contained a ChatML template, which was removed.",
        "6 answers contained <|im_end|>, which was removed.",
        "3 pairs came with reference log-probabilities, which are recomputed for this model.",
    ]


def test_columns_that_are_nearly_right_are_named(folder):
    (folder / "data.json").write_text('{"imgae": "a.png", "promt": "?", "choosen": "a", "rejected": "b"}')
    with pytest.raises(
        UserError, match=r"no known preference format\. .*'promt', did you mean 'prompt'.*'choosen', .* 'chosen'"
    ):
        read_pairs(folder / "data.json")
