"""Streaming: the pieces make the answer, none is taken back, and no character is cut."""

import pytest
from random_policy import tokenizer as load_tokenizer
from sample_photos import write_photos

from mlx_visalign.inference.policy import load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.inference.streaming import BROKEN, pieces, stream
from mlx_visalign.utils.arguments import DESCRIBE


class Bytes:
    """A tokenizer of bytes, as byte fallback decodes: a run of bytes that is no whole text is broken as a whole."""

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        data = bytes(ids)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return BROKEN * len(data)


def streamed(data):
    return list(pieces(Bytes(), data))


@pytest.mark.parametrize("text", ["ab", "é", "a€😀 b", "  x \n", "😀😀", ""])
def test_pieces_are_whole_characters_and_together_the_text(text):
    made = streamed(text.encode())
    assert "".join(made) == text.strip() and all(made)
    assert BROKEN not in "".join(made)


def test_a_text_cut_off_inside_a_character_takes_nothing_back():
    assert streamed("ab€".encode()[:-1]) == ["a", "b", 2 * BROKEN]


def test_bytes_that_are_no_text_do_not_stop_what_follows():
    """The end of a character without its start, which takes the byte before along: no sound model says so."""
    tokenizer = load_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["A", "<0x73>", "<0xA9>", ".", "."])
    assert list(pieces(tokenizer, ids)) == ["A", "s", f"{BROKEN}.", "."]


def test_white_space_waits_for_what_follows():
    assert streamed(b"a b ") == ["a", " b"]


@pytest.fixture(scope="module")
def policy():
    return load("tiny")


@pytest.mark.parametrize("sampling", [Sampling(64), Sampling(12), Sampling(64, temperature=1.5)])
def test_it_is_the_answer(tmp_path, policy, sampling):
    image = str(write_photos(tmp_path / "photos", 1) / "0.png")
    made = list(stream(policy, image, DESCRIBE, sampling, seed=3))
    assert "".join(made) == policy.answer(image, DESCRIBE, sampling, seed=3) and len(made) > 3
