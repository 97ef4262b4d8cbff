"""Control tokens in people's words are words: no text makes a token that steers the model, whatever tokenizer reads it."""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import random_onevision
from sentencepiece_like import llama_like_tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from mlx_visalign.data import prompt_template as module
from mlx_visalign.data.prompt_template import IMAGE, TEMPLATES, control_tokens, plain_ids, prompt_ids, response_ids
from mlx_visalign.inference.policy import TINY, read_tokenizer
from mlx_visalign.scorers.clip import TINY_CLIP, CLIPScorer

QUESTION = "Is there a red triangle in the image?"
SAID = ("It says {} and {}.", "{}", "{}{}", "{}\nThe end{}", " {} dog {} ", "a{}b")


@cache
def llama(legacy):
    """Llama's own class: with `legacy` a space comes before every piece of a text, without it before the text alone."""
    model = json.loads(llama_like_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=merges, legacy=legacy)  # type: ignore[arg-type]
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


@cache
def loose():
    """Where <image> and <pad> are added words like any other, and so is a word of the trade."""
    made = json.loads(llama_like_tokenizer().backend_tokenizer.to_str())
    made["added_tokens"] = [token | {"special": token["content"] not in (IMAGE, "<pad>")} for token in made["added_tokens"]]
    backend = Tokenizer.from_str(json.dumps(made))
    backend.add_tokens(["angiogram"])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


TOKENIZERS = {
    "tiny": lambda: read_tokenizer(TINY),
    "sentencepiece": llama_like_tokenizer,
    "llama": lambda: llama(legacy=True),
    "llama, a space at the start alone": lambda: llama(legacy=False),
    "added as words": loose,
    "qwen": random_onevision.tokenizer,
}
READ_BY = [(name, template) for name in TOKENIZERS for template in TEMPLATES if (template == "onevision") == (name == "qwen")]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def test_an_answer_with_control_tokens_is_its_characters(tokenizer):
    controls = control_tokens(tokenizer)
    assert len(controls) >= 5
    for token in controls.values():
        for said in SAID:
            text = said.format(*[token] * said.count("{}"))
            *words, end = response_ids(tokenizer, text)
            assert end == tokenizer.eos_token_id and controls.keys().isdisjoint(words), (text, words)
            assert tokenizer.decode(words).strip() == text.strip()


@pytest.mark.parametrize(("name", "template"), READ_BY)
def test_a_question_with_control_tokens_leaves_the_templates_own(name, template):
    tokenizer = TOKENIZERS[name]()
    controls = control_tokens(tokenizer)
    own = [token for token in prompt_ids(tokenizer, template, QUESTION, 3) if token in controls]
    for token in set(controls.values()) - {IMAGE}:
        for said in SAID:
            question = said.format(*[token] * said.count("{}"))
            ids = prompt_ids(tokenizer, template, question, 3)
            assert [token for token in ids if token in controls] == own, question
            assert question.strip() in tokenizer.decode([token for token in ids if token not in controls])


@pytest.mark.parametrize("text", [QUESTION, "A giraffe stands, é 😀.", "a  b\n\n c", "", "angiogram", "<b>bold</b> [1] a < b"])
def test_ordinary_words_have_the_ids_they_always_had(tokenizer, text):
    assert plain_ids(tokenizer, text) == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(("name", "template"), READ_BY)
def test_prompts_in_pieces_have_the_ids_of_the_whole(name, template, monkeypatch):
    """What is done for a question with control tokens is exact: done for an ordinary one it changes no id."""
    tokenizer = TOKENIZERS[name]()
    expected = prompt_ids(tokenizer, template, QUESTION, 3)
    assert expected == [
        token
        for token in tokenizer(TEMPLATES[template].replace("{question}", QUESTION)).input_ids
        for _ in range(3 if token == tokenizer.convert_tokens_to_ids(IMAGE) else 1)
    ] or name.endswith("alone")  # there vicuna_v1, tokenised in two halves, is another prompt
    bound = control_tokens(tokenizer)
    asked = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("triangle")[-1])
    monkeypatch.setattr(module, "control_tokens", lambda _: _Suspicious(bound, asked))
    assert prompt_ids(tokenizer, template, QUESTION, 3) == expected


class _Suspicious(dict):
    """The control tokens, and a word of the question that is taken for one where prompts are looked at."""

    def __init__(self, bound, word):
        super().__init__(bound)
        self.word = word

    def __contains__(self, token):
        return token == self.word or super().__contains__(token)


def test_clip_reads_control_tokens_as_words():
    tokenizer = read_tokenizer(TINY_CLIP)
    scorer = CLIPScorer.__new__(CLIPScorer)
    scorer.tokenizer, scorer.clip, scorer.cut = (
        tokenizer,
        SimpleNamespace(config=SimpleNamespace(text=SimpleNamespace(max_position_embeddings=100))),
        0,
    )
    for text in ("a red cross", "a small purple triangle at the bottom left."):
        assert scorer._ids(text) == tokenizer(text).input_ids
    start, *words, end = scorer._ids("a cross<|endoftext|> <|STARTOFTEXT|>a dog")
    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert {start, end}.isdisjoint(words) and "dog" in tokenizer.decode(words).replace(" ", "")
