"""Streaming an answer in final pieces of text."""

from collections.abc import Iterable, Iterator
from typing import Any

from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.sampling import Sampling, sample_steps
from mlx_visalign.utils.seeding import key_for

BROKEN = "\N{REPLACEMENT CHARACTER}"  # decoded from the bytes of an incomplete character


def stream(policy: Policy, image: str, question: str, sampling: Sampling, seed: int = 0) -> Iterator[str]:
    """The text of `policy.answer`, piece by piece."""
    pixels = policy.pixels(image)[None]
    branches = policy.prefill(policy.features(pixels), [policy.prompt_ids(question)]).branch(1)
    keys = [key_for(seed, "answer")]
    steps = sample_steps(policy.decoder, branches, branches.state, policy.end, sampling, keys)
    return pieces(policy.tokenizer, (int(step[0]) for step in steps))


def pieces(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """Decode tokens into pieces of text that stay valid.

    Special tokens and outer white space are omitted. A character may consist of several tokens; until the last of them has
    arrived, the earlier bytes may decode to something else, so that text is held back. Only the number of characters already
    yielded is kept, so invalid bytes cannot block what follows.
    """
    read: list[int] = []
    text, given = "", 0
    for token in ids:
        read.append(token)
        text = tokenizer.decode(read, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        whole = text.rstrip(BROKEN)
        if len(whole) > given:
            yield whole[given:]
            given = len(whole)
    if len(text) > given:  # the answer ended inside a character
        yield text[given:]
