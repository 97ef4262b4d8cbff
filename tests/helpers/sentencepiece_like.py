"""A tokenizer as LLaMA has it: SentencePiece's pieces with ▁ for a space, byte fallback, <s> in front.

Nouns take several pieces ("gir|aff|e"), a full stop is a piece of its own, "..." and ".\\n" are others, and what the
vocabulary has not (an é, an emoji) becomes bytes.
"""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "The image shows a dining table with two cups, a knife and a bowl of oranges.",
    "In the background there is a man in a red shirt, and a dog is lying on the couch.",
    "There are several people standing on the street near a traffic light. A bus is waiting.",
    "USER: Describe this image in detail. ASSISTANT: Yes, there is a cat in the image.",
) * 3


@cache
def llama_like_tokenizer() -> PreTrainedTokenizerFast:
    merges = _merges()
    characters = sorted({character for text in TEXTS for character in text} | set("abcdefghijklmnopqrstuvwxyz") - {" "})
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(c for c in characters if c != " "), "\n"]
    merges += [(".", "."), ("..", "."), (".", "\n")]
    tokens += [token for merge in merges if (token := "".join(merge)) not in tokens]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = _normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def _merges() -> list[tuple[str, str]]:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = _normalizer()
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|[^\w]"), "isolated")  # no piece crosses a word
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=250, min_frequency=3, show_progress=False))
    return [(first, second) for first, second in json.loads(bpe.to_str())["model"]["merges"]]


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
