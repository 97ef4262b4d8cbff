"""The prompt template: the words around a question. Part of the model, like its weights.

`vicuna_v1` is what LLaVA-1.5 was trained on (haotian-liu/LLaVA, llava/conversation.py): the two halves around the image
are tokenised apart, with one BOS. `hf` is the shorter template of the llava-hf model cards, tokenised in one piece.
`onevision` is the ChatML of llava-onevision-qwen2 in transformers (tests/models/llava_onevision/test_processing_*.py), in
one piece too. The authors' own prompt, `qwen_1_5` in LLaVA-VL/LLaVA-NeXT, has a system message and more line breaks.
An adapter trained on one and used on the other silently loses its effect, so the name travels with model and adapter.
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
TOKENS = re.compile(r"(<image>|<\|im_start\|>|<\|im_end\|>)")  # what is a token, and not words, in a template
BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


def prompt_ids(tokenizer: Any, template: Template, question: str, image_tokens: int) -> list[int]:
    """The token ids of a whole prompt, with the image placeholder repeated once per image feature.

    Only the template's own pieces become control tokens: a `</s>` in the question is read as its characters. Raises
    `UserError` where the question holds the placeholder itself, since the image's place is the template's to say.
    """
    if IMAGE in question:
        raise UserError(f"A question may not contain {IMAGE}: the template puts the image in. Got {question!r}.")
    text = TEMPLATES[template].replace("{question}", question)
    image = [tokenizer.convert_tokens_to_ids(IMAGE)] * image_tokens
    if template == "vicuna_v1":
        before, after = text.split(IMAGE)
        return [*tokenizer(before).input_ids, *image, *plain_ids(tokenizer, after)]
    ids = _in_one_piece(tokenizer, TEMPLATES[template], question)
    at = ids.index(image[0])
    return [*ids[:at], *image, *ids[at + 1 :]]


def response_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of an answer, with the end token. All of them count in a log-probability.

    Control tokens in the answer's words are read as their characters; the only one is the end token.
    """
    return [*plain_ids(tokenizer, text), tokenizer.eos_token_id]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of people's words, which never hold a control token. Every such text is tokenised here.

    Words without control tokens get the ids that they always have.
    """
    if SURROGATE.search(text):
        raise UserError(f"This text is broken, for it holds half of a two-part character: {shown(text)}.")
    # Not verbose: that a text is long is said by whoever knows where it comes from.
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    unknown = {tokenizer.unk_token_id}  # also what a character that is in no token becomes
    if (control_tokens(tokenizer).keys() - unknown).isdisjoint(ids):
        return ids
    # transformers splits what is marked as special. A folder may have its image token as an added word like any other.
    whole = tokenizer.backend_tokenizer
    text = whole.normalizer.normalize_str(text) if whole.normalizer else text
    words = [word for word, _ in whole.pre_tokenizer.pre_tokenize_str(text)] if whole.pre_tokenizer else [text]
    return [token.id for word in words for token in whole.model.tokenize(word)]


@lru_cache(maxsize=4)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that steer a model and are no words, by their ids: special ones, and others added in brackets of any kind.

    Tokens for spaces, line breaks or the words of a trade may be added too; those are words.
    """
    added = tokenizer.added_tokens_decoder.items()
    found = {number: token.content for number, token in added if token.special or BRACKETED.fullmatch(token.content)}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _in_one_piece(tokenizer: Any, template: str, question: str) -> list[int]:
    """The ids of a prompt tokenised as a whole; of its pieces where the question's words hold control tokens."""
    controls = control_tokens(tokenizer)

    def read(asked: str) -> tuple[list[int], list[int]]:
        ids = tokenizer(template.replace("{question}", asked), verbose=False).input_ids
        return ids, [token for token in ids if token in controls]

    ids, found = read(question)
    if found == read("")[1]:  # the template's own
        return ids
    # Some tokenizers put a space in front of a text that they do not put in front of what follows a token.
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
