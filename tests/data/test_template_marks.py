"""A template's marks around people's words: taken off, refused, or left alone where they are only spoken of."""

import contextlib
import itertools

import pytest

from mlx_visalign.data.prompt_template import TEMPLATES
from mlx_visalign.data.template_marks import FAMILIES, TakenOff, answer_in, asked, question_in
from mlx_visalign.utils.errors import UserError

WORDS = "<image>\nWhat is it?"
LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n"

# Whole prompts as each family's chat template renders them, with WORDS as the question.
RENDERED = {
    "ChatML": f"<|im_start|>user\n{WORDS}<|im_end|>\n<|im_start|>assistant\n",
    "ChatML with a system part": f"<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n{WORDS}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "ChatML without an answer": f"<|im_start|>user\n{WORDS}<|im_end|>\n",
    "Llama-3": f"<|begin_of_text|>{LLAMA3.format('user')}{WORDS}<|eot_id|>{LLAMA3.format('assistant')}",
    "Llama-3 with a system part": f"<|begin_of_text|>{LLAMA3.format('system')}Be good.<|eot_id|>{LLAMA3.format('user')}{WORDS}"
    f"<|eot_id|>{LLAMA3.format('assistant')}",
    "Llama-4": f"<|header_start|>user<|header_end|>\n\n{WORDS}<|eot|><|header_start|>assistant<|header_end|>\n\n",
    "Llama-2": f"<s>[INST] <<SYS>>\nBe good.\n<</SYS>>\n\n{WORDS} [/INST]",
    "Llama-2 as Mistral has it": f"<s>[INST] {WORDS}[/INST]",
    "Gemma": f"<bos><start_of_turn>user\n{WORDS}<end_of_turn>\n<start_of_turn>model\n",
    "Phi-3": f"<|user|>\n{WORDS}<|end|>\n<|assistant|>\n",
    "Phi-3 as Zephyr has it": f"<|system|>\nBe good.</s>\n<|user|>\n{WORDS}</s>\n<|assistant|>\n",
    "Granite": f"<|start_of_role|>user<|end_of_role|>{WORDS}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "DeepSeek": f"<\uff5cbegin▁of▁sentence\uff5c><\uff5cUser\uff5c>{WORDS}<\uff5cAssistant\uff5c>",
    "Command-R": f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{WORDS}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "SmolVLM": f"<|im_start|>User:{WORDS}<end_of_utterance>\nAssistant:",
    "Vicuna": TEMPLATES["vicuna_v1"].replace("{question}", "What is it?"),
    "Vicuna as llava-hf has it": TEMPLATES["hf"].replace("{question}", "What is it?"),
    "Vicuna, its beginning": f"USER: {WORDS}",
    "Vicuna, its end": f"{WORDS} ASSISTANT:",
    "ChatML of onevision": TEMPLATES["onevision"].replace("{question}", "What is it?"),
    "LLaVA-v0": f"A chat between a human and an assistant.\n### Human: {WORDS}\n### Assistant:",
    "Alpaca": f"Below is an instruction.\n\n### Instruction:\n{WORDS}\n\n### Response:",
    "Human/Assistant": f"\n\nHuman: {WORDS}\n\nAssistant:",
}

ANSWERED = {
    "ChatML": "<|im_start|>assistant\n{}<|im_end|>\n",
    "Llama-3": LLAMA3.format("assistant") + "{}<|eot_id|>",
    "Llama-4": "<|header_start|>assistant<|header_end|>\n\n{}<|eot|>",
    "Llama-2": "[/INST] {} </s>",
    "Gemma": "<start_of_turn>model\n{}<end_of_turn>\n",
    "Phi-3": "<|assistant|>\n{}<|end|>",
    "Granite": "<|start_of_role|>assistant<|end_of_role|>{}<|end_of_text|>",
    "DeepSeek": "<\uff5cAssistant\uff5c>{}<\uff5cend▁of▁sentence\uff5c>",
    "Command-R": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    "Vicuna": "ASSISTANT: {}</s>",
    "LLaVA-v0": "### Assistant: {}</s>",
    "Alpaca": "### Response:\n{}</s>",
    "Human/Assistant": "Assistant: {}",
}


def name_of(template):
    return next(family.template for family in FAMILIES if family.name in template)


@pytest.mark.parametrize("template", RENDERED)
def test_a_whole_turn_loses_its_marks(template):
    question, lost = question_in(RENDERED[template], "prompt")
    assert question.replace("<image>", "").strip() == "What is it?" and lost == name_of(template)


@pytest.mark.parametrize("template", ANSWERED)
def test_an_answer_loses_its_opening_and_its_end(template):
    assert answer_in(ANSWERED[template].format("A dog. A cat."), "chosen") == ("A dog. A cat.", name_of(template))


@pytest.mark.parametrize("behind", ["A dog.</s>\n{turn}", "A dog."])
@pytest.mark.parametrize("template", ANSWERED)
def test_several_turns_are_refused(template, behind):
    turn = RENDERED[template].rstrip() + "\n"
    text = turn + behind.format(turn=turn)
    with pytest.raises(UserError, match=f"^data:3: prompt holds more than one turn of {name_of(template)}"):
        question_in(text, "data:3: prompt")
    if "INST" not in text:  # there an answer's opening is the question's end
        with pytest.raises(UserError, match=f"^data:3: chosen holds more than one turn of {name_of(template)}"):
            answer_in(text, "data:3: chosen")


@pytest.mark.parametrize(
    "text",
    [
        "What does the label USER: admin say?",
        "USER: admin stands there. Who is it?",
        "What follows the words USER: and ASSISTANT:",
        "What is written after </s>",
        "What does <|im_end|> mean here?",
        "Is <s> in it?",
        "What do [INST] and [/INST] mean?",
        "Which of <|user|> and <|assistant|> is on the screen?",
        "Human: is this one?",
        "Is this an AI: yes or no?",
        "A < b </ c",
        "",
    ],
)
def test_marks_that_are_only_spoken_of_stay(text):
    assert question_in(text, "prompt") == (text, None)


@pytest.mark.parametrize(
    "text", ["It says USER: admin.", "The tag </s> ends it. Then more.", "A sign: Human: A and Assistant: B", "<b>bold</b>", ""]
)
def test_answers_that_speak_of_marks_stay(text):
    assert answer_in(text, "chosen") == (text, None)


@pytest.mark.parametrize("mark", ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end|>", "<eos>"])
def test_an_end_alone_is_taken_off(mark):
    assert answer_in(f"A dog {mark}\n", "chosen") == ("A dog", mark)
    assert answer_in(f"<s> A dog{mark}<pad><pad>", "chosen")[0] == "A dog"
    assert question_in(f"What is it?{mark}", "prompt") == ("What is it?", mark)
    assert question_in(f"<s>What is it?{mark}", "prompt")[0] == "What is it?"


def test_what_was_taken_off_is_said_once_with_its_count(capsys):
    taken = TakenOff()
    for _ in range(12):
        assert taken.question(RENDERED["ChatML"], "prompt") == WORDS
        taken.answer("A dog.", "chosen")
    taken.answer("A dog.</s>", "chosen")
    taken.report()
    assert capsys.readouterr().err.splitlines() == [
        "12 prompts contained a ChatML template, which was removed.",
        "1 answer contained </s>, which was removed.",
    ]


def test_what_a_person_asks_loses_the_images_mark_with_its_template(capsys):
    assert asked("What is it?") == "What is it?" and not capsys.readouterr().err
    assert asked(RENDERED["Alpaca"]) == "What is it?"
    assert capsys.readouterr().err == "1 prompt contained an Alpaca template, which was removed.\n"
    with pytest.raises(UserError, match=r"^The prompt holds more than one turn of a Vicuna template"):
        asked("USER: a ASSISTANT: b USER: c ASSISTANT:")


def test_long_texts_full_of_marks_are_read_once():
    """A step back for every mark would take hours here."""
    for mark in ("USER: ", "ASSISTANT: ", " ", "\n", "</s>", "<s>", "<|im_start|>", "<|im_end|>\n", "[INST] ", "<|user|>", "."):
        for read, behind in itertools.product((question_in, answer_in), ("", "x")):
            with contextlib.suppress(UserError):
                read(mark * (60_000 // len(mark)) + behind, "prompt")
