"""Prompt token ids against transformers, for all templates."""

import pytest
import random_onevision

from mlx_visalign.data.prompt_template import IMAGE, TEMPLATES, prompt_ids, response_ids
from mlx_visalign.tiny_world.tokenizer import train_llava_tokenizer
from mlx_visalign.utils.errors import UserError

QUESTION = "Is there a red triangle in the image?"


@pytest.fixture(scope="module")
def tokenizer():
    return train_llava_tokenizer()


def processor(tokenizer):
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    return LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


@pytest.mark.parametrize("template", ["hf", "vicuna_v1"])
def test_ids_equal_the_llava_processors(tokenizer, template):
    """Llama's tokenizer treats what follows a special token as a new text, so the whole and the halves agree."""
    from PIL import Image

    text = TEMPLATES[template].replace("{question}", QUESTION)
    theirs = processor(tokenizer)(text=text, images=Image.new("RGB", (48, 48)), return_tensors="np")["input_ids"][0]
    assert prompt_ids(tokenizer, template, QUESTION, 36) == theirs.tolist()


def test_halves_are_tokenised_apart_with_one_bos(tokenizer):
    """The original code's way (haotian-liu/LLaVA, mm_utils.py, tokenizer_image_token)."""
    before, after = TEMPLATES["vicuna_v1"].replace("{question}", QUESTION).split(IMAGE)
    first, second = tokenizer(before).input_ids, tokenizer(after).input_ids
    assert first[0] == second[0] == tokenizer.bos_token_id
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    assert prompt_ids(tokenizer, "vicuna_v1", QUESTION, 3) == [*first, image, image, image, *second[1:]]


def test_onevision_equals_transformers_chat_template():
    """What apply_chat_template (transformers 5.23) makes of a question with the template in transformers' tests."""
    rendered = f"<|im_start|>user <image>\n{QUESTION}<|im_end|><|im_start|>assistant\n"
    qwen = random_onevision.tokenizer()
    for image_tokens in (1, 21):
        expected = qwen(rendered.replace(IMAGE, IMAGE * image_tokens)).input_ids
        assert prompt_ids(qwen, "onevision", QUESTION, image_tokens) == expected
    special = [token for token in qwen.convert_ids_to_tokens(expected) if token in qwen.all_special_tokens]
    assert special == ["<|im_start|>", *[IMAGE] * 21, "<|im_end|>", "<|im_start|>"]


def test_an_onevision_answer_continues_the_prompt_as_if_tokenised_together():
    qwen, answer = random_onevision.tokenizer(), "There is a red triangle."
    together = TEMPLATES["onevision"].replace("{question}", QUESTION) + answer + "<|im_end|>"
    assert prompt_ids(qwen, "onevision", QUESTION, 1) + response_ids(qwen, answer) == qwen(together).input_ids


def test_known_words_of_the_templates():
    assert TEMPLATES["hf"] == "USER: <image>\n{question} ASSISTANT:"
    assert "a curious user and" in TEMPLATES["vicuna_v1"] and "the user's questions. USER: <image>\n" in TEMPLATES["vicuna_v1"]


def test_an_answer_continues_the_prompt_as_if_tokenised_together(tokenizer):
    answer = "A small red circle at the top left."
    text = TEMPLATES["hf"].replace("{question}", QUESTION)
    together = tokenizer(f"{text} {answer}").input_ids
    apart = prompt_ids(tokenizer, "hf", QUESTION, 1) + response_ids(tokenizer, answer)
    assert apart == [*together, tokenizer.eos_token_id]
    assert tokenizer.decode(response_ids(tokenizer, answer), skip_special_tokens=True) == answer


def test_half_a_character_is_no_text(tokenizer):
    for text in ("\ud800", "what \udcff?"):
        with pytest.raises(UserError, match="half of a two-part character"):
            prompt_ids(tokenizer, "vicuna_v1", text, 4)
        with pytest.raises(UserError, match="half of a two-part character"):
            response_ids(tokenizer, text)


def test_a_smuggled_image_is_refused_in_a_question_and_read_as_words_in_an_answer(tokenizer):
    with pytest.raises(UserError, match="may not contain <image>"):
        prompt_ids(tokenizer, "hf", f"What {IMAGE}?", 4)
    assert tokenizer.convert_tokens_to_ids(IMAGE) not in response_ids(tokenizer, f"It {IMAGE}")
