"""Object mentions in an answer, located by token.

An answer is never tokenised again: its tokens are decoded one by one, and the text that each adds gives its position.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlx_visalign.data.object_vocabulary import Vocabulary, plural


@dataclass(frozen=True)
class TokenMention:
    """An object named in an answer.

    phrase       the name used, in the singular
    start, end   its characters, end not included
    first, last  its tokens, last included; a token that ends one word and begins another belongs to both
    """

    canonical: str
    phrase: str
    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Reader:
    """Finds the objects of a vocabulary in answers."""

    tokenizer: Any
    vocabulary: Vocabulary

    def text(self, ids: Sequence[int]) -> str:
        """The answer's text, nothing stripped.

        The positions of mentions refer to it.
        """
        return self._decoded([ids])[0]

    def mentions(self, ids: Sequence[int]) -> list[TokenMention]:
        """Every mention of an object in an answer, in order."""
        text = self.text(ids)
        ends = self.token_ends(ids)
        return [
            TokenMention(
                mention.canonical,
                self._phrases[_plain(text[mention.start : mention.end])],
                mention.start,
                mention.end,
                first=next(token for token, end in enumerate(ends) if end > mention.start),
                last=next(token for token, end in enumerate(ends) if end >= mention.end),
            )
            for mention in self.vocabulary.mentions(text)
        ]

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """For each token, the text's length up to it.

        A character made of several byte tokens counts with the last of them: before that its bytes decode to something
        else, so only the common prefix with the complete text is counted. Special tokens add nothing.
        """
        whole = self.text(ids)
        starts = self._decoded([ids[: count + 1] for count in range(len(ids))])
        return [len(os.path.commonprefix([start, whole])) for start in starts]  # noqa: RUF071 (characters are meant)

    def _decoded(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def _phrases(self) -> dict[str, str]:
        """The singular phrase for every form that the vocabulary may find."""
        phrases = [phrase for entry in self.vocabulary.entries for phrase in entry.phrases]
        # The vocabulary's own phrases map to themselves, even where one looks like the plural of another.
        return {_plain(plural(phrase)): _plain(phrase) for phrase in phrases} | {_plain(p): _plain(p) for p in phrases}


def _plain(phrase: str) -> str:
    return re.sub(r"[\s-]+", " ", phrase.strip().lower())
