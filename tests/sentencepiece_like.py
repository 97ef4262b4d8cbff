"""A tokenizer as SentencePiece makes them, unlike the tiny world's: words in pieces, bytes for what it does not know."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<image>")
PIECES = """
▁ ▁A ▁a ▁the ▁two ▁and ▁on ▁with ▁it ▁They ▁man ▁men ▁cat ▁dog s ▁hot ▁gir affe af fe ▁fr is be e ▁ska te board ▁eats ▁is
▁ca ke ▁teddy ▁b ear ▁gree n . , ! -
"""


@cache
def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Unigram with byte fallback: "giraffe" is ▁gir + affe, "frisbees" four pieces, an emoji four bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = dict.fromkeys([*PIECES.split(), *map(chr, range(97, 123)), "\n"])
    # Longer pieces are likelier than what they consist of.
    scores = [(name, 0.0) for name in SPECIAL] + [(name, -50.0) for name in bytes_]
    scores += [(piece, -10.0 + min(len(piece), 6) if len(piece) > 1 else -12.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
