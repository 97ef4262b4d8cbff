"""Mentions on tokens: every word's pieces, bytes and compounds included, on two kinds of tokenizer."""

from functools import cache

import pytest
from random_policy import tokenizer as tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from mlx_visalign.data.object_vocabulary import Entry, Vocabulary, coco80
from mlx_visalign.methods.fisao.token_mentions import Reader
from mlx_visalign.tiny_world import language

COCO = coco80()
WORLD = Vocabulary.from_rows(language.vocabulary(), "the tiny world")

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


def found(reader, text):
    """(canonical, phrase, the words found, the tokens they were found on) of each mention."""
    words = reader.tokenizer
    ids = [*words(text, add_special_tokens=False).input_ids, words.eos_token_id]
    assert reader.text(ids) == text
    pieces = words.convert_ids_to_tokens(ids)
    return [
        (mention.canonical, mention.phrase, text[mention.start : mention.end], pieces[mention.first : mention.last + 1])
        for mention in reader.mentions(ids)
    ]


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("A giraffe.", [("giraffe", "giraffe", "giraffe", ["▁gir", "affe"])]),
        (
            "the dog and two frisbees!",
            [("dog", "dog", "dog", ["▁dog"]), ("frisbee", "frisbee", "frisbees", ["▁fr", "is", "be", "e", "s"])],
        ),
        ("A hot dog on it", [("hot dog", "hot dog", "hot dog", ["▁hot", "▁dog"])]),
        ("two hot-dogs", [("hot dog", "hot dog", "hot-dogs", ["▁hot", "-", "d", "o", "g", "s"])]),
        ("the men", [("person", "man", "men", ["▁men"])]),
        # An emoji is four byte tokens, of which the first three decode to something that is not in the text.
        ("A \U0001f415 cat", [("cat", "cat", "cat", ["▁cat"])]),
        ("the\ndog", [("dog", "dog", "dog", ["d", "o", "g"])]),
        ("it is green", []),
    ],
)
def test_mentions_on_sentencepiece_tokens(text, mentions):
    assert found(Reader(sentencepiece_like(), COCO), text) == mentions


def test_mentions_on_the_tiny_worlds_tokens():
    text = "A small red triangle at the top. A large blue cross at the left."
    triangle, cross = found(Reader(tiny_tokenizer(), WORLD), text)
    assert triangle == ("red triangle", "red triangle", "red triangle", ["▁red", "▁tri", "ang", "le"])
    assert cross == ("blue cross", "blue cross", "blue cross", ["▁blue", "▁cr", "oss"])


def test_every_token_ends_where_the_text_says():
    reader = Reader(sentencepiece_like(), COCO)
    ids = reader.tokenizer("A \U0001f415 cat", add_special_tokens=False).input_ids
    pieces = reader.tokenizer.convert_ids_to_tokens(ids)
    assert dict(zip(pieces, reader.token_ends(ids), strict=True)) == {
        "▁A": 1, "▁": 2, "<0xF0>": 2, "<0x9F>": 2, "<0x90>": 2, "<0x95>": 3, "▁cat": 7,
    }  # fmt: skip


def test_what_was_sampled_is_not_tokenised_again():
    """The same text in other tokens than the tokenizer would choose: the mention lies on those that were sampled."""
    reader = Reader(sentencepiece_like(), COCO)
    ids = reader.tokenizer.convert_tokens_to_ids(["▁a", "▁", "d", "o", "g", "."])
    [mention] = reader.mentions(ids)
    assert (reader.text(ids), mention.first, mention.last) == ("a dog.", 2, 4)


def test_a_phrase_that_looks_like_a_plural_is_itself():
    reader = Reader(sentencepiece_like(), Vocabulary((Entry("scissors", ("scissors", "scissor")),)))
    ids = reader.tokenizer("scissors", add_special_tokens=False).input_ids
    assert reader.mentions(ids)[0].phrase == "scissors"
