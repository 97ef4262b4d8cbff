"""The marks of chat templates in people's words: recognised, taken off where that is safe, and told.

A model puts its own template around a question. Words that bring one along (data made with `apply_chat_template`, a
prompt copied from a model card) would be trained, or asked, inside a second one. So one whole turn loses its marks, and
what holds several turns is refused, for it is not one question. Words that only mention a mark stay as they are.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.formatting import counted

# What stands for an image, here and in the templates of other models.
IMAGE_MARK = re.compile(
    r"<image>|<\|vision_start\|>(?:<\|image_pad\|>)*<\|vision_end\|>|<\|image_pad\|>|<\|image(?:_\d+)?\|>|<start_of_image>"
    r"|<image_soft_token>|<image_placeholder>|<im_start>(?:<im_patch>|<image>)*<im_end>"
)
BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<\uff5cbegin▁of▁sentence\uff5c>")
BEGUN = re.compile(rf"\s*(?:{'|'.join(map(re.escape, BEGINS))})(?:\s|{'|'.join(map(re.escape, BEGINS))})*")
ENDS = (
    *("</s>", "<eos>", "<pad>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|eot_id|>", "<|eot|>", "<|eom_id|>"),
    *("<|end_of_text|>", "<end_of_turn>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>", "<\uff5cend▁of▁sentence\uff5c>"),
)
SENTENCE_ENDS = ".!?>\n"


@dataclass(frozen=True)
class Family:
    """One kind of template, by what opens the turn of each role (regular expressions).

    `tokens`: the marks are tokens with a role, and marks wherever they stand. Otherwise they are words, such as USER:, and
    mean a turn only where the text is that turn. `preamble`: sentences may stand before the first of such words.
    """

    name: str
    user: str
    assistant: str
    system: str = r"(?!)"
    tokens: bool = True
    preamble: bool = True

    @property
    def template(self) -> str:
        """What it is called in a sentence."""
        return f"{'an' if self.name[0] in 'AEIOU' else 'a'} {self.name} template"

    def turn(self, text: str) -> str | None:
        """The words of the user's one turn that `text` is, without system part and the answer's opening. None: it is none.

        Raises ValueError where it holds more turns than that.
        """
        body = _without_ends(text)
        answer = self._answer_at_the_end.search(body)
        words = _without_ends(body[: answer.start()] if answer else body)
        opened = self._opened_by_user(words)
        if not opened and not (answer and not self.tokens and words[-1:] in SENTENCE_ENDS and words):
            if self.tokens and self._mark.search(text):
                raise ValueError
            return None
        rest = words[opened.end() :] if opened else words
        if self._mark.search(rest) if self.tokens else self._answer.search(rest):
            raise ValueError
        # Words such as USER: alone, at the start, are a mark where an image's mark follows.
        return rest if self.tokens or answer or IMAGE_MARK.match(rest.lstrip()) else None

    def answer(self, text: str) -> str:
        """The words of an answer behind its opening, if it has one. Raises ValueError where it holds more turns than that."""
        found = self._answer.match(text.lstrip())
        words = text.lstrip()[found.end() :] if found else text
        asked = None if self.tokens else self._user.search(words)
        if (
            self._mark.search(words)
            if self.tokens
            else asked and _opens(words, asked) and self._answer.search(words, asked.end())
        ):
            raise ValueError
        return words

    def _opened_by_user(self, text: str) -> re.Match[str] | None:
        """What opens the first turn; a system part goes before it, or for words a preamble."""
        system = self._system.match(text.lstrip()) if self.tokens else None
        if system is None and self.tokens:
            return re.compile(rf"\s*(?:{self.user})").match(text)
        found = self._user.search(text)
        if found is None or system or (self.preamble and _opens(text, found)) or not text[: found.start()].strip():
            return found
        return None

    @cached_property
    def _user(self) -> re.Pattern[str]:
        return re.compile(self.user, re.DOTALL)

    @cached_property
    def _system(self) -> re.Pattern[str]:
        return re.compile(self.system)

    @cached_property
    def _answer(self) -> re.Pattern[str]:
        return re.compile(self.assistant)

    @cached_property
    def _answer_at_the_end(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self.assistant})\Z")

    @cached_property
    def _mark(self) -> re.Pattern[str]:
        return re.compile(f"{self.user}|{self.assistant}|{self.system}")


def _roles(name: str, opening: str, user: str = "user", assistant: str = "assistant", system: str = "system") -> Family:
    """A family whose turns open with the same tokens around the role."""
    return Family(name, opening.replace("ROLE", user), opening.replace("ROLE", assistant), opening.replace("ROLE", system))


FAMILIES = (
    Family(
        "SmolVLM",
        r"<\|im_start\|>\s*User:",
        r"(?<=<end_of_utterance>\n)Assistant:",
        r"<\|im_start\|>\s*System:",
    ),
    _roles("ChatML", r"<\|im_start\|>\s*ROLE", r"user\b", r"assistant\b(?:\s*<think>\s*</think>)?", r"system\b"),
    _roles("Llama-3", r"<\|start_header_id\|>\s*ROLE\s*<\|end_header_id\|>"),
    _roles("Llama-4", r"<\|header_start\|>\s*ROLE\s*<\|header_end\|>"),
    _roles("Gemma", r"<start_of_turn>\s*ROLE\b", assistant="model"),
    _roles("Granite", r"<\|start_of_role\|>\s*ROLE\s*<\|end_of_role\|>"),
    _roles("Phi-3", r"<\|ROLE\|>(?=\s*\n|\s*\Z)"),
    _roles("Command-R", r"<\|START_OF_TURN_TOKEN\|>\s*<\|ROLE_TOKEN\|>", "USER", "CHATBOT", "SYSTEM"),
    _roles("DeepSeek", r"<\uff5cROLE\uff5c>", "User", "Assistant", "System"),
    Family("Llama-2", r"\[INST\]\s*(?:<<SYS>>.*?<</SYS>>)?", r"\[/INST\]", tokens=False, preamble=False),
    Family("Vicuna", r"(?<!\S)USER:", r"(?<!\S)ASSISTANT:", tokens=False),
    Family("LLaVA-v0", r"(?<!\S)###\s?Human:", r"(?<!\S)###\s?Assistant:", tokens=False),
    Family("Alpaca", r"(?<!\S)###\s?Instruction:", r"(?<!\S)###\s?Response:", tokens=False),
    Family("Human/Assistant", r"(?<!\S)(?:Human|User):", r"(?<!\S)(?:Assistant|AI):", tokens=False),
)


def question_in(text: str, where: str) -> tuple[str, str | None]:
    """A question without a template's marks, and what was taken off it in words; None where nothing was.

    Raises UserError, beginning with `where`, for a text of several turns.
    """
    begun = _without_begins(text)
    for family in FAMILIES:
        try:
            words = family.turn(begun)
        except ValueError:
            raise UserError(_several(family, where)) from None
        if words is not None:
            return words.strip(), family.template
    # Without other marks only those go that hang on the words: "What does the label say: </s>" is about one.
    plain, rest = text.strip(), begun.strip()
    if any(plain.startswith(mark) and not plain[len(mark) :][:1].isspace() for mark in BEGINS):
        plain = rest
    if (ended := _without_ends(plain))[-1:] in tuple(".!?"):
        plain = ended
    return plain, _lost(text, plain)


def answer_in(text: str, where: str) -> tuple[str, str | None]:
    """An answer without a template's marks, as `question_in` is for questions."""
    ended = plain = _without_ends(_without_begins(text))
    opened = None
    for family in FAMILIES:
        try:
            words = family.answer(plain)
        except ValueError:
            raise UserError(_several(family, where)) from None
        if words != plain:
            plain, opened = words, family.template
    return plain.strip(), opened or _lost(text, ended)


@dataclass
class TakenOff:
    """Takes marks off many texts, and says once what that was."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def question(self, text: str, where: str) -> str:
        return self._counted("prompt", *question_in(text, where))

    def answer(self, text: str, where: str) -> str:
        return self._counted("answer", *answer_in(text, where))

    def tell(self) -> None:
        for (noun, what), count in self.counts.items():
            say(f"{counted(count, noun)} carried {what}, which was taken off.")

    def _counted(self, noun: str, text: str, what: str | None) -> str:
        if what is not None:
            self.counts[noun, what] += 1
        return text


def asked(question: str) -> str:
    """What a person asks, without a template's marks; said if there were any. UserError for several turns."""
    taken = TakenOff()
    plain = taken.question(question, "The prompt")
    if taken.counts:  # of a whole template the image's mark is a part
        plain = IMAGE_MARK.sub("", plain).strip()
    taken.tell()
    return plain


def _several(family: Family, where: str) -> str:
    return (
        f"{where} holds more than one turn of {family.template}. One question with one answer is wanted: keep one turn, "
        "without the template's marks."
    )


def _lost(text: str, plain: str) -> str | None:
    """The marks before and behind `plain` in the text it comes from, in words."""
    at = text.find(plain.strip())
    around = f"{text[:at]} {text[at + len(plain.strip()) :]}"
    return ", ".join(mark for mark in (*BEGINS, *ENDS) if mark in around) or None


def _without_begins(text: str) -> str:
    begun = BEGUN.match(text)
    return text[begun.end() :] if begun else text


def _without_ends(text: str) -> str:
    end = len(text.rstrip())
    while mark := next((mark for mark in ENDS if text.endswith(mark, 0, end)), None):
        end -= len(mark)
        while text[end - 1 : end].isspace():
            end -= 1
    return text[:end]


def _opens(text: str, found: re.Match[str]) -> bool:
    """Whether words that are marks stand at the start of a sentence."""
    before = text[: found.start()].rstrip(" \t")
    return not before or before[-1] in SENTENCE_ENDS
