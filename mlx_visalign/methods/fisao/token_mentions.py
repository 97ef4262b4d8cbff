"""Where an answer names an object: which of its own tokens, and by which phrase.

An answer is never tokenised again: its tokens are decoded one after the other, and what each adds to the text tells
where in the text it stands.
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
    """An object named in an answer: by which singular phrase, at characters start to end (end not included), and from
    the token `first` to the token `last` (included). A token that holds the end of one word and the start of another
    belongs to both.
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
        """The answer's text as the positions of its mentions count it: nothing is stripped."""
        return self._decoded([ids])[0]

    def mentions(self, ids: Sequence[int]) -> list[TokenMention]:
        """Every naming of an object in an answer, in its order."""
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
        """For each token, how many characters of the text are there once it is read.

        A character made of several byte tokens is there with the last of them; before that its bytes decode to something
        else, which is why only what agrees with the whole text counts. Special tokens add nothing.
        """
        whole = self.text(ids)
        starts = self._decoded([ids[: count + 1] for count in range(len(ids))])
        return [len(os.path.commonprefix([start, whole])) for start in starts]  # noqa: RUF071 (characters are meant)

    def _decoded(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def _phrases(self) -> dict[str, str]:
        """The singular phrase of every form in which the vocabulary may find one."""
        phrases = [phrase for entry in self.vocabulary.entries for phrase in entry.phrases]
        # A phrase of the vocabulary is itself, even where it looks like the plural of another.
        return {_plain(plural(phrase)): _plain(phrase) for phrase in phrases} | {_plain(p): _plain(p) for p in phrases}


def _plain(phrase: str) -> str:
    return re.sub(r"[\s-]+", " ", phrase.strip().lower())
