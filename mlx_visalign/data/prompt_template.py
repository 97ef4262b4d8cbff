"""Prompt templates, and tokenisation of prompts and answers.

The template, the text around a question, belongs to the model like its weights.

`vicuna_v1` is what LLaVA-1.5 was trained on (haotian-liu/LLaVA, llava/conversation.py): the two halves around the image
are tokenised separately, with one BOS. `hf` is the shorter template of the llava-hf model cards, tokenised in one piece.
`onevision` is the ChatML of llava-onevision-qwen2 in transformers (tests/models/llava_onevision/test_processing_*.py), in
one piece too. The original prompt, `qwen_1_5` in LLaVA-VL/LLaVA-NeXT, has a system message and more line breaks.
An adapter trained on one and used on the other silently loses its effect, so its name is saved with model and adapter.
"""

import re
from functools import lru_cache
from typing import Any, Literal

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import SURROGATE, shown

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
TOKENS = re.compile(r"(<image>|<\|im_start\|>|<\|im_end\|>)")  # the template's own control tokens
BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


def prompt_ids(tokenizer: Any, template: Template, question: str, image_tokens: int) -> list[int]:
    """Token ids of a prompt, one placeholder per image feature.

    Only the template's own pieces become control tokens: a `</s>` in the question is tokenised as plain text. Raises
    `UserError` if the question contains the placeholder, since the template places the image.
    """
    if IMAGE in question:
        raise UserError(f"A question may not contain {IMAGE}: the template adds it. Got {question!r}.")
    text = TEMPLATES[template].replace("{question}", question)
    image = [tokenizer.convert_tokens_to_ids(IMAGE)] * image_tokens
    if template == "vicuna_v1":
        before, after = text.split(IMAGE)
        return [*tokenizer(before).input_ids, *image, *plain_ids(tokenizer, after)]
    ids = _in_one_piece(tokenizer, TEMPLATES[template], question)
    at = ids.index(image[0])
    return [*ids[:at], *image, *ids[at + 1 :]]


def response_ids(tokenizer: Any, text: str, ended: bool = True) -> list[int]:
    """Token ids of an answer with the end token.

    Without it if the text is only the beginning of an answer (`ended` false). All of them count in a log-probability. Control
    tokens in the answer's text are tokenised as plain text.
    """
    ids = plain_ids(tokenizer, text)
    return [*ids, tokenizer.eos_token_id] if ended else ids


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of user text, free of control tokens.

    Every text of users and models is tokenised here. Text without control tokens gets its usual ids.
    """
    if SURROGATE.search(text):
        raise UserError(f"This text is broken: it holds half of a two-part character (a lone surrogate): {shown(text)}.")
    # Not verbose: the caller, who knows where the text is from, reports a long one.
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    unknown = {tokenizer.unk_token_id}  # also the id of characters without a token
    if (control_tokens(tokenizer).keys() - unknown).isdisjoint(ids):
        return ids
    # transformers splits only special tokens, but an image token may be an added token that is not marked as special.
    backend = tokenizer.backend_tokenizer
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
    return [token.id for word in words for token in backend.model.tokenize(word)]


@lru_cache(maxsize=4)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Control tokens by id: special and bracketed added tokens.

    Other added tokens (spaces, line breaks, domain words) are plain text.
    """
    added = tokenizer.added_tokens_decoder.items()
    found = {number: token.content for number, token in added if token.special or BRACKETED.fullmatch(token.content)}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _in_one_piece(tokenizer: Any, template: str, question: str) -> list[int]:
    """Ids of a prompt tokenised as one text, or piece by piece if the question contains control tokens."""
    controls = control_tokens(tokenizer)

    def read(asked: str) -> tuple[list[int], list[int]]:
        ids = tokenizer(template.replace("{question}", asked), verbose=False).input_ids
        return ids, [token for token in ids if token in controls]

    ids, found = read(question)
    if found == read("")[1]:  # only the template's own
        return ids
    # Some tokenizers add a space at the start of a text, but not after a control token.
    alone = plain_ids(tokenizer, "\n")
    followed = tokenizer(f"{IMAGE}\n", add_special_tokens=False).input_ids[1:]
    start, *others = TOKENS.split(template)
    ids = tokenizer(start).input_ids
    for piece in filter(None, others):
        if TOKENS.fullmatch(piece):
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        else:
            ids += plain_ids(tokenizer, piece.replace("{question}", question))[len(alone) - len(followed) :]
    return ids
