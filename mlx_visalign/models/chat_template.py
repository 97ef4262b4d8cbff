"""Which words a model's folder says go around a question, and whether they are those of one of our templates.

A folder says it with a chat template (Jinja, in one of four files), else with a name in config.json, else with the tokens
its tokenizer has for turns. A template of another family than the one taken makes a model answer worse without any error.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlx_visalign.data.prompt_template import IMAGE, TEMPLATES
from mlx_visalign.models import families
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.schema import shown

FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")  # first wins
LONGEST = 1 << 20  # bytes of a chat template; the longest known has 30 thousand
VICUNA, CHATML = "Vicuna (USER: ... ASSISTANT:)", "ChatML (<|im_start|>)"
FAMILY = {"vicuna_v1": VICUNA, "hf": VICUNA, "onevision": CHATML}
# What a prompt of a family has in it, and what models, conversations and language models of it are called.
MARKS = {
    "<|start_header_id|>": "Llama 3 (<|start_header_id|>)",
    "<|im_start|>": CHATML,
    "<start_of_turn>": "Gemma (<start_of_turn>)",
    "[INST]": "Mistral and Llama 2 ([INST])",
    "<|user|>": "Phi 3 and Zephyr (<|user|>)",
    "### Human:": "Vicuna 0 (### Human:)",
    "### Instruction:": "Alpaca (### Instruction:)",
    "ASSISTANT:": VICUNA,
}
NAMES = {
    r"vicuna|llava[-_]?v?1\.5|^(llava_)?v1$|^plain$": VICUNA,
    r"llama[-_]?3": MARKS["<|start_header_id|>"],
    r"llama[-_]?2|mi[sx]tral": MARKS["[INST]"],
    r"chatml|qwen|\bmpt\b|v1\.6[-_]34b": CHATML,
    r"^(llava_)?v0$": MARKS["### Human:"],
    r"gemma": MARKS["<start_of_turn>"],
    r"\bphi[-_]?3": MARKS["<|user|>"],
}
NAMED_BY = ("conv_version", "conv_mode", "conv_template", "conversation_template", "prompt_version", "_name_or_path")
QUESTION, ANSWER = "Is there a lighthouse?", "There is a lighthouse."
RENDERING = Path(__file__).with_name("template_renderer.py")
PATIENCE = 120  # seconds for a process that may compute for two


@dataclass(frozen=True)
class Stated:
    """What a folder says of its words.

    where   the file, or the setting, that says it
    family  one of MARKS' values; None where it is another one, or cannot be told
    shown   the words themselves, or what went wrong
    exact   our template that makes the same prompt, if there is one
    end     what comes after an answer; None where that is not said
    """

    where: str
    family: str | None
    shown: str
    exact: str | None = None
    end: str | None = None


@dataclass(frozen=True)
class Choice:
    """A template, and what there is to say about it: why it, or how the folder's own words differ."""

    template: str
    note: str


def choose(
    folder: Path, config: Mapping[str, Any], asked: str | None = None, ours: str | None = None, cure: str = ""
) -> Choice:
    """The template for a model: `asked` for, or else the one that the folder states.

    `ours` is what an earlier conversion wrote into it. Raises `UserError`, ending with `cure`, where nobody asked for a
    template and the folder's words are of another family than it, or than the model's own.
    """
    kind = config.get("model_type")
    own = families.find(kind).template if kind in families.names() else "vicuna_v1"
    taken = asked or ours or own
    found = stated_by(folder, config)
    if found is None:
        return Choice(taken, "" if asked or ours else "the family's own, for the folder states none")
    if found.family == FAMILY[taken]:
        return Choice(taken, _within_family(taken, found))
    family = f"the words of {found.family}, " if found.family else ""
    differs = f"{found.where} states {family}{found.shown}"
    if asked:
        return Choice(taken, f"as asked for, although {differs}")
    if found.family is None:
        raise UserError(f"{folder}: {differs}, so it cannot be told whether the model was trained with {taken}. {cure}")
    raise UserError(
        f"{folder}: {differs}, while {taken}, the template that would be taken, is {FAMILY[taken]}: asked in other words than "
        f"it was trained with, a model answers worse. {cure}"
    )


def same_words(one: str, other: str) -> bool:
    """Whether two templates mark turns alike."""
    return FAMILY[one] == FAMILY[other]


def _within_family(taken: str, found: Stated) -> str:
    """LLaVA-1.5 was trained with vicuna_v1, though Hugging Face's copies state the shorter `hf`."""
    if found.exact == taken:
        return f"as {found.where} states it"
    if found.exact == "hf":
        return f"{found.where} states hf, the same without the system message; --template hf takes that"
    return f"{found.where} has other words of the same family, {found.shown}"


def stated_by(folder: Path, config: Mapping[str, Any]) -> Stated | None:
    """What the folder says of its words, by the first of the ways in which it may; None where it says nothing."""
    found = chat_template(folder)
    if found is not None:
        return _rendered(*found, tokens=tuple(sorted(_special_tokens(folder).items())))
    return _named(folder, config) or _by_tokens(folder)


def chat_template(folder: Path) -> tuple[str, str] | None:
    """The chat template that transformers' processor would use, as (the file's name, Jinja); None if there is none.

    Raises `UserError` for a file that cannot be read or holds something else.
    """
    for name in FILES:
        if not (folder / name).is_file():
            continue
        template = _text(folder / name) if name.endswith(".jinja") else _of_json(folder / name)
        if template:
            return name, template
    return None


def _text(path: Path) -> str:
    refuse_pointer(path)
    try:
        if path.stat().st_size > LONGEST:
            raise UserError(f"{path} is larger than any chat template (1 MB). Take the file of the original model.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a chat template ({error}).") from None


def _of_json(path: Path) -> str | None:
    """Text, or several by their names, of which `default` counts; transformers has them as a list, older files as an object."""
    value = read_json(path).get("chat_template")
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict) and value:
        value = value.get("default", next(iter(value.values())))
    if value in (None, "", [], {}):
        return None
    if not isinstance(value, str) or len(value) > LONGEST:
        raise UserError(f"{path}: chat_template should be text or a list of named texts, got {shown(value)}.")
    return value


def end_token(folder: Path) -> str | None:
    """The token that the tokenizer calls the end."""
    return _special_tokens(folder).get("eos_token")


def _special_tokens(folder: Path) -> dict[str, str]:
    """Tokens that chat templates name, such as eos_token."""
    file = folder / "tokenizer_config.json"
    found = read_json(file) if file.is_file() else {}
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "image_token")
    tokens = {
        name: found[name].get("content") if isinstance(found[name], dict) else found[name] for name in names if name in found
    }
    return {name: token for name, token in tokens.items() if isinstance(token, str)}


def _rendered(where: str, template: str, tokens: tuple[tuple[str, str], ...]) -> Stated:
    texts = _render(template, tokens)
    if isinstance(texts, str):
        return Stated(where, None, f"a chat template that cannot be rendered ({texts})")
    prompt, chat = texts
    prompt = prompt.strip().removeprefix(dict(tokens).get("bos_token", "<s>")).strip()
    exact = next((name for name, text in TEMPLATES.items() if text.replace("{question}", QUESTION).strip() == prompt), None)
    family = next((family for mark, family in MARKS.items() if mark in prompt), None)
    end = chat.partition(ANSWER)[2].strip() if ANSWER in chat else None
    return Stated(where, family, _quoted(prompt), exact, end)


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 120 else f"{line[:80]} ... {line[-35:]}")


@cache
def _render(template: str, tokens: tuple[tuple[str, str], ...]) -> tuple[str, str] | str:
    """One user's turn with an image, ready for an answer, and the same with an answer; or why that cannot be.

    Templates want a message's content as a list of parts or, older ones, as text.
    """
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}], [{"type": "text", "text": ANSWER}]
    chats = []
    for question, answer in (parts, (f"{IMAGE}\n{QUESTION}", ANSWER)):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        chats += [[turns[:1], True], [turns, False]]
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(RENDERING)],
            input=json.dumps({"template": template, "tokens": dict(tokens), "chats": chats}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        made = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        made = None
    if made is None:
        return "it does not come to an end"
    for prompt, chat in (made[:2], made[2:]):
        if isinstance(prompt, str) and QUESTION in prompt and not re.search(r"""['"]type['"]:""", prompt):
            return prompt, chat if isinstance(chat, str) else ""
    errors = [text["error"] for text in made if isinstance(text, dict)]
    return errors[0] if errors else "the question does not come out of it"


def _named(folder: Path, config: Mapping[str, Any]) -> Stated | None:
    """By the name of a conversation, or of the language model, where that name is of a family."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for setting in NAMED_BY:
            value = part.get(setting)
            name = re.split(r"[/\\]", value.rstrip("/\\"))[-1].lower() if isinstance(value, str) else ""
            if family := family_of(name):
                return Stated(f"config.json ({setting})", family, _quoted(str(value)))
    return None


def family_of(name: str) -> str | None:
    """The family that a model's or a conversation's name tells, if it tells one."""
    return next((family for pattern, family in NAMES.items() if re.search(pattern, name.lower())), None)


def _by_tokens(folder: Path) -> Stated | None:
    """By the tokens that only one family needs."""
    file = folder / "tokenizer.json"
    added = read_json(file).get("added_tokens") if file.is_file() else None
    words = {token.get("content") for token in added if isinstance(token, dict)} if isinstance(added, list) else set()
    mark = next((mark for mark in MARKS if mark in words), None)
    return None if mark is None else Stated("tokenizer.json", MARKS[mark], f"by its token {mark}")


def as_jinja(template: str, end: str) -> str:
    """A chat template, for transformers and mlx-vlm, that makes our prompt and ends each answer with the token `end`."""
    system, opening = "", TEMPLATES[template].partition(IMAGE)[0]
    if FAMILY[template] == VICUNA:
        system, turns = opening.partition("USER:")[0], ("USER: ", " ", "ASSISTANT: ", "ASSISTANT:")
    else:
        turns = ("<|im_start|>user ", "<|im_end|>", "<|im_start|>assistant\\n", "<|im_start|>assistant\\n")
    user, after, assistant, prompted = turns
    return (
        f"{system}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ '{user}' }}}}{{% else %}}{{{{ '{assistant}' }}}}{{% endif %}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        f"{{% for part in message['content'] if part['type'] == 'image' %}}{{{{ '{IMAGE}\\n' }}}}{{% endfor %}}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
        f"{{% if message['role'] == 'user' %}}{{{{ '{after}' }}}}{{% else %}}{{{{ '{end}' }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{prompted}' }}}}{{% endif %}}"
    )
