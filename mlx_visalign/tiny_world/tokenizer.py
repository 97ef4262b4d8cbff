"""The tiny world's two tokenizers, trained on its own text."""

import json
from collections.abc import Iterator
from functools import reduce
from itertools import accumulate

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from mlx_visalign.data.prompt_template import IMAGE, TEMPLATES
from mlx_visalign.tiny_world.language import caption, random_question, sentence
from mlx_visalign.tiny_world.scenes import COLOURS, SHAPES, split
from mlx_visalign.utils.arguments import DESCRIBE

CLIP_LENGTH = 32  # tokens
CLIP_START, CLIP_END, CLIP_WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

LLAVA_LENGTH = 256
VOCABULARY = 640  # a multiple of 64, so that the embedding and the head can be quantised
PIECES = {"triangle": "tri|ang|le", "cross": "cr|oss"}  # nouns of several tokens, as rare nouns are in real tokenizers
SPACE = "▁"


def train_clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer like CLIP's.

    Lower-case byte-level BPE with an end-of-text token last. Every word of the world is one token.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix=CLIP_WORD_END))
    empty = CLIPTokenizer().backend_tokenizer
    bpe.normalizer, bpe.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=2, initial_alphabet=bytes_, end_of_word_suffix=CLIP_WORD_END, show_progress=False
    )
    bpe.train_from_iterator(clip_texts(), trainer)
    merges = _merges(bpe)
    # In OpenAI's order: all bytes, all bytes at a word's end, the merges, and the two special tokens.
    tokens = [*bytes_, *(byte + CLIP_WORD_END for byte in bytes_), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, CLIP_START, CLIP_END])}
    # Its annotation says that merges are strings, but its code needs pairs.
    return CLIPTokenizer(vocabulary, merges, model_max_length=CLIP_LENGTH)  # type: ignore[arg-type]


def clip_texts() -> Iterator[str]:
    """Training text of CLIP's tokenizer."""
    for scene in split("pretraining", 1000):
        yield caption(scene.things)
    for word in (*COLOURS, *SHAPES):
        yield f"a {word} object"


def train_llava_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama's.

    BPE with byte fallback, ▁ for every space and before the text, and <s> in front.
    """
    merges = _word_merges()
    merges += _phrase_merges(_llama(merges), TEMPLATES["vicuna_v1"].split(IMAGE)[0].rstrip())
    return PreTrainedTokenizerFast(
        tokenizer_object=_llama(merges),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=LLAVA_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def llava_texts() -> Iterator[str]:
    """Training text of LLaVA's tokenizer.

    The prompt, captions, questions and answers. No token extends across a |.
    """
    yield from 2 * TEMPLATES["vicuna_v1"].replace("{question}", DESCRIBE).split(IMAGE)
    for scene in split("pretraining", 1000):
        question = random_question(scene, np.random.default_rng(scene.seed))
        for text in (*map(sentence, scene.things), question.prompt, question.answer):
            yield reduce(lambda text, word: text.replace(word, PIECES[word]), PIECES, text)


def _word_merges() -> list[tuple[str, str]]:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = _llama_normalizer()
    # Only while training: words and punctuation marks are split, so that no token extends across words.
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{SPACE}?\w+|[^\w]"), "isolated")
    bpe.train_from_iterator(llava_texts(), trainers.BpeTrainer(vocab_size=VOCABULARY, min_frequency=2, show_progress=False))
    return _merges(bpe)


def _phrase_merges(tokenizer: Tokenizer, phrase: str) -> list[tuple[str, str]]:
    """Merges that join a fixed phrase, the system prompt, into one token; it would fill half of a tiny model's prompt.

    They come after all others and chain from the left, so they do not affect any other text.
    """
    first, *rest = tokenizer.encode(phrase, add_special_tokens=False).tokens
    starts = accumulate(rest, initial=first)
    return list(zip(starts, rest, strict=False))


def _llama(merges: list[tuple[str, str]]) -> Tokenizer:
    special = ("<unk>", "<s>", "</s>", "<pad>", IMAGE)
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\n", SPACE, *map(chr, range(33, 127))]
    tokens += ["".join(merge) for merge in merges]
    tokens += [f"<unused{index}>" for index in range(VOCABULARY - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    llama = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    llama.normalizer = _llama_normalizer()
    llama.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    llama.add_special_tokens(list(special))
    return llama


def _llama_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
