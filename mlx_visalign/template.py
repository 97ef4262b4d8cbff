"""The prompt template: the words around a question. Part of the model, like its weights.

`vicuna_v1` is what LLaVA-1.5 was trained on (haotian-liu/LLaVA, llava/conversation.py): the two halves around the image
are tokenised apart, with one BOS. `hf` is the shorter template of the llava-hf model cards, tokenised in one piece.
`onevision` is the ChatML of llava-onevision-qwen2 in transformers (tests/models/llava_onevision/test_processing_*.py), in
one piece too. The authors' own prompt, `qwen_1_5` in LLaVA-VL/LLaVA-NeXT, has a system message and more line breaks.
An adapter trained on one and used on the other silently loses its effect, so the name travels with model and adapter.
"""

from typing import Any, Literal

from mlx_visalign.errors import UserError

Template = Literal["vicuna_v1", "hf", "onevision"]
IMAGE = "<image>"
TEMPLATES: dict[str, str] = {
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        f"and polite answers to the user's questions. USER: {IMAGE}\n{{question}} ASSISTANT:"
    ),
    "hf": f"USER: {IMAGE}\n{{question}} ASSISTANT:",
    "onevision": f"<|im_start|>user {IMAGE}\n{{question}}<|im_end|><|im_start|>assistant\n",
}


def prompt_ids(tokenizer: Any, template: Template, question: str, image_tokens: int) -> list[int]:
    """The token ids of a whole prompt, with the image placeholder repeated once per image feature.

    Raises `UserError` where the question holds the placeholder itself, since the image's place is the template's to say.
    """
    if IMAGE in question:
        raise UserError(f"A question may not contain {IMAGE}: the template puts the image in. Got {question!r}.")
    text = TEMPLATES[template].replace("{question}", question)
    image = [tokenizer.convert_tokens_to_ids(IMAGE)] * image_tokens
    if template == "vicuna_v1":
        before, after = text.split(IMAGE)
        return [*tokenizer(before).input_ids, *image, *tokenizer(after, add_special_tokens=False).input_ids]
    ids = tokenizer(text).input_ids
    at = ids.index(image[0])
    return [*ids[:at], *image, *ids[at + 1 :]]


def response_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of an answer, with the end token. All of them count in a log-probability."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.convert_tokens_to_ids(IMAGE) in ids:
        raise UserError(f"An answer may not contain {IMAGE}. Got {text!r}.")
    return [*ids, tokenizer.eos_token_id]
