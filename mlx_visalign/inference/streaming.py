"""An answer while it is written, in pieces of text that are never taken back."""

from collections.abc import Iterable, Iterator
from typing import Any

from mlx_visalign.inference.policy import Policy
from mlx_visalign.inference.sampling import Sampling, sample_steps
from mlx_visalign.utils.seeding import key_for

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no whole character yet


def stream(policy: Policy, image: str, question: str, sampling: Sampling, seed: int = 0) -> Iterator[str]:
    """The text that `policy.answer` gives, piece by piece."""
    pixels = policy.pixels(image)[None]
    branches = policy.prefill(policy.features(pixels), [policy.prompt_ids(question)]).branch(1)
    keys = [key_for(seed, "answer")]
    steps = sample_steps(policy.decoder, branches, branches.state, policy.end, sampling, keys)
    return pieces(policy.tokenizer, (int(step[0]) for step in steps))


def pieces(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """The text of these tokens as far as the next ones should not change it, special tokens and outer white space left out.

    A character may be made of several tokens, and until the last of them is there, the bytes before it may decode to
    something else as well: such a text is held back. What was given is counted, never looked at again, so that bytes
    which are no text at all cannot stop what follows.
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
    if len(text) > given:  # cut off inside a character
        yield text[given:]
