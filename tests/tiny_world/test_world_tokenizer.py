"""The tiny world's tokenizers: CLIP's and Llama's own kinds, small."""

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from mlx_visalign.data.prompt_template import prompt_ids, response_ids
from mlx_visalign.tiny_world.language import caption
from mlx_visalign.tiny_world.scenes import COLOURS, SHAPES, split
from mlx_visalign.tiny_world.tokenizer import VOCABULARY, train_clip_tokenizer, train_llava_tokenizer
from mlx_visalign.utils.arguments import DESCRIBE


@pytest.fixture(scope="module")
def llava():
    return train_llava_tokenizer()


@pytest.fixture(scope="module")
def clip():
    return train_clip_tokenizer()


def test_special_tokens_and_size_are_llamas_kind(llava):
    assert llava.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    assert len(llava) == VOCABULARY
    assert VOCABULARY % 64 == 0


def test_text_survives(llava):
    for text in [*(caption(scene.things) for scene in split("validation", 20)), "zebra 3€ <tab>\t", DESCRIBE]:
        assert llava.decode(llava(text).input_ids, skip_special_tokens=True) == text


def test_words_are_single_tokens_but_for_some_nouns(llava):
    pieces = {word: len(llava.tokenize(f"a {word}")) - 1 for word in (*COLOURS, *SHAPES)}
    assert pieces.pop("triangle") == 3
    assert pieces.pop("cross") == 2
    assert set(pieces.values()) == {1}


def test_the_system_prompt_is_one_token_and_joins_nothing_else(llava):
    ids = prompt_ids(llava, "vicuna_v1", DESCRIBE, 1)
    assert [*ids[:1], *ids[2:4]] == llava.convert_tokens_to_ids(["<s>", "▁", "<image>"])
    assert llava.tokenize("a chat. The assistant gives.")[-3:] == ["▁assistant", "▁gives", "."]
    assert not any("▁" in token[1:] for token in llava.tokenize("A large red star at the top. USER: ASSISTANT: A"))


def test_an_answer_ends_with_the_end_token(llava):
    assert llava.convert_ids_to_tokens(response_ids(llava, "Yes.")) == ["▁Yes", ".", "</s>"]


def test_clips_end_of_text_has_the_highest_id_and_all_bytes_are_known(clip):
    assert clip.eos_token_id == len(clip) - 1
    start, *ids, end = clip("a RED zebra?").input_ids
    assert (start, end) == (clip.bos_token_id, clip.eos_token_id)
    assert clip.eos_token_id not in ids
    assert len(clip("a small purple triangle at the bottom left.").input_ids) == 11


def test_both_load_from_the_folder_they_are_saved_in(tmp_path, llava, clip):
    llava.save_pretrained(tmp_path / "llava")
    clip.save_pretrained(tmp_path / "clip")
    texts = ["A small red circle at the top.", "Is there a cyan cross in the image?"]
    assert AutoTokenizer.from_pretrained(tmp_path / "llava")(texts).input_ids == llava(texts).input_ids
    assert CLIPTokenizer.from_pretrained(tmp_path / "clip")(texts).input_ids == clip(texts).input_ids
