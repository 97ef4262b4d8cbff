"""Detects and removes chat template markers in user data.

A model puts its own template around a question. Text that already has one (data made with `apply_chat_template`, a prompt
copied from a model card) would be wrapped twice in training and inference. So the markers around a single turn are removed,
with a message, and a text of several turns is refused. Text that only mentions a marker is left as it is.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.formatting import counted

# Image placeholders, ours and those of other models' templates.
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
    """A family of templates, by the openings of its turns.

    user, assistant, system  regular expressions for the opening of each role's turn
    tokens    openings are control tokens, which mark a turn anywhere; otherwise they are words such as USER:, which mark one
              only where the text as a whole is that turn
    preamble  sentences may precede the first opening that is a word
    """

    name: str
    user: str
    assistant: str
    system: str = r"(?!)"
    tokens: bool = True
    preamble: bool = True

    @property
    def template(self) -> str:
        """Name with article, for messages."""
        return f"{'an' if self.name[0] in 'AEIOU' else 'a'} {self.name} template"

    def turn(self, text: str) -> str | None:
        """Content of `text` if it is one user turn.

        System part and the opening of the answer are removed too. None if it has no such markers; ValueError if it has
        several turns.
        """
        body = _without_ends(text)
        answer = self._answer_at_the_end.search(body)
        content = _without_ends(body[: answer.start()] if answer else body)
        opened = self._opened_by_user(content)
        if not opened and not (answer and not self.tokens and content[-1:] in SENTENCE_ENDS and content):
            if self.tokens and self._mark.search(text):
                raise ValueError
            return None
        rest = content[opened.end() :] if opened else content
        if self._mark.search(rest) if self.tokens else self._answer.search(rest):
            raise ValueError
        # USER: alone, at the start, is a marker only before an image placeholder.
        return rest if self.tokens or answer or IMAGE_MARK.match(rest.lstrip()) else None

    def answer(self, text: str) -> str:
        """Content of an answer without its opening, if any.

        Raises ValueError if it has several turns.
        """
        found = self._answer.match(text.lstrip())
        content = text.lstrip()[found.end() :] if found else text
        user = None if self.tokens else self._user.search(content)
        if (
            self._mark.search(content)
            if self.tokens
            else user and _opens(content, user) and self._answer.search(content, user.end())
        ):
            raise ValueError
        return content

    def _opened_by_user(self, text: str) -> re.Match[str] | None:
        """Opening of the first turn, which may follow a system part or, for words, a preamble."""
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
    """A family whose openings are the same tokens around the role."""
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
    """Question without template markers, and what was removed.

    The second value is text for messages, or None if nothing was removed. Raises UserError, beginning with `where`, for a
    text of several turns.
    """
    begun = _without_begins(text)
    for family in FAMILIES:
        try:
            content = family.turn(begun)
        except ValueError:
            raise UserError(_several(family, where)) from None
        if content is not None:
            return content.strip(), family.template
    # Without a family, only markers attached to the text are removed: "What does the label say: </s>" mentions one.
    plain, rest = text.strip(), begun.strip()
    if any(plain.startswith(mark) and not plain[len(mark) :][:1].isspace() for mark in BEGINS):
        plain = rest
    if (ended := _without_ends(plain))[-1:] in tuple(".!?"):
        plain = ended
    return plain, _lost(text, plain)


def answer_in(text: str, where: str) -> tuple[str, str | None]:
    """`question_in` for answers."""
    ended = plain = _without_ends(_without_begins(text))
    opened = None
    for family in FAMILIES:
        try:
            content = family.answer(plain)
        except ValueError:
            raise UserError(_several(family, where)) from None
        if content != plain:
            plain, opened = content, family.template
    return plain.strip(), opened or _lost(text, ended)


@dataclass
class TakenOff:
    """Removes markers from many texts and counts them."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def question(self, text: str, where: str) -> str:
        return self._counted("prompt", *question_in(text, where))

    def answer(self, text: str, where: str) -> str:
        return self._counted("answer", *answer_in(text, where))

    def report(self) -> None:
        """Say what was removed, one message per kind."""
        for (noun, what), count in self.counts.items():
            say(f"{counted(count, noun)} contained {what}, which was removed.")

    def _counted(self, noun: str, text: str, what: str | None) -> str:
        if what is not None:
            self.counts[noun, what] += 1
        return text


def asked(question: str) -> str:
    """The user's question without template markers.

    Says so if there were any. UserError for several turns.
    """
    taken = TakenOff()
    plain = taken.question(question, "The prompt")
    if taken.counts:  # an image placeholder is part of a template
        plain = IMAGE_MARK.sub("", plain).strip()
    taken.report()
    return plain


def _several(family: Family, where: str) -> str:
    return (
        f"{where} holds more than one turn of {family.template}. Keep one question and one answer, "
        "without the template's markers."
    )


def _lost(text: str, plain: str) -> str | None:
    """The markers before and after `plain` in the original text, for messages."""
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
    """Whether an opening is at the start of a sentence."""
    before = text[: found.start()].rstrip(" \t")
    return not before or before[-1] in SENTENCE_ENDS
