"""A model folder's chat format, matched to our templates.

A folder states it with a chat template (Jinja, in one of four files), else with a name in config.json, else with the turn
tokens of its tokenizer. With a template of another family, a model answers worse without any error.
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
# Text that marks a prompt of a family, and patterns for the names of its models, conversations and language models.
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
TIMEOUT = 120  # seconds of wall time for a renderer that is limited to two of CPU time


@dataclass(frozen=True)
class Stated:
    """The chat format that a folder states.

    where   the file, or the setting, that states it
    family  one of MARKS' values; None for any other or an unknown one
    shown   the rendered prompt, name or token, or what went wrong
    exact   our template that makes the same prompt, if there is one
    end     the text after an answer; None if unknown
    """

    where: str
    family: str | None
    shown: str
    exact: str | None = None
    end: str | None = None


@dataclass(frozen=True)
class Choice:
    """A template, and a note on how it was chosen."""

    template: str
    note: str


def choose(
    folder: Path, config: Mapping[str, Any], asked: str | None = None, ours: str | None = None, cure: str = ""
) -> Choice:
    """The template to use for a model.

    This is `asked` (the user's request), else `ours` (written by an earlier conversion), else the family's default. Raises
    `UserError`, ending with `cure`, if the user asked for none and the folder states the chat format of another or an
    unknown family.
    """
    kind = config.get("model_type")
    own = families.find(kind).template if kind in families.names() else "vicuna_v1"
    taken = asked or ours or own
    found = stated_by(folder, config)
    if found is None:
        return Choice(taken, "" if asked or ours else "the family's default; the folder states none")
    if found.family == FAMILY[taken]:
        return Choice(taken, _within_family(taken, found))
    family = f"the chat format of {found.family}, " if found.family else ""
    differs = f"{found.where} states {family}{found.shown}"
    if asked:
        return Choice(taken, f"as requested, although {differs}")
    if found.family is None:
        raise UserError(f"{folder}: {differs}, so it is unclear whether the model was trained with {taken}. {cure}")
    raise UserError(
        f"{folder}: {differs}, but the template to be used, {taken}, is {FAMILY[taken]}. A model answers worse in a chat "
        f"format that it was not trained with. {cure}"
    )


def same_chat_format(one: str, other: str) -> bool:
    """Whether two templates mark turns alike."""
    return FAMILY[one] == FAMILY[other]


def _within_family(taken: str, found: Stated) -> str:
    """The note on a template of the stated family.

    LLaVA-1.5 was trained with vicuna_v1, although Hugging Face's copies state the shorter `hf`.
    """
    if found.exact == taken:
        return f"as stated in {found.where}"
    if found.exact == "hf":
        return f"{found.where} states hf, the same without the system message; choose it with --template hf"
    return f"{found.where} has a variant of the same chat format, {found.shown}"


def stated_by(folder: Path, config: Mapping[str, Any]) -> Stated | None:
    """The chat format that a folder states; None if none.

    The first of these counts: a chat template, a name in config.json, tokens for turns.
    """
    found = chat_template(folder)
    if found is not None:
        return _rendered(*found, tokens=tuple(sorted(_special_tokens(folder).items())))
    return _named(folder, config) or _by_tokens(folder)


def chat_template(folder: Path) -> tuple[str, str] | None:
    """The chat template of transformers' processor, as (file name, Jinja).

    None if there is none. Raises `UserError` for a file that cannot be read or contains something else.
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
    """The chat template of a JSON file: text, or the one called `default` of several (a list, in older files an object)."""
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
    """The tokenizer's end token."""
    return _special_tokens(folder).get("eos_token")


def _special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that chat templates refer to, such as eos_token."""
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
    """A rendered user turn with an image, without and with an answer; or the reason why rendering failed.

    Templates expect a message's content as a list of parts or, older ones, as text.
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
            timeout=TIMEOUT,
        )
        made = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        made = None
    if made is None:
        return "rendering does not finish"
    for prompt, chat in (made[:2], made[2:]):
        if isinstance(prompt, str) and QUESTION in prompt and not re.search(r"""['"]type['"]:""", prompt):
            return prompt, chat if isinstance(chat, str) else ""
    errors = [text["error"] for text in made if isinstance(text, dict)]
    return errors[0] if errors else "the question is missing from its output"


def _named(folder: Path, config: Mapping[str, Any]) -> Stated | None:
    """The chat format by the name of a conversation or of the language model, if a family has such names."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for setting in NAMED_BY:
            value = part.get(setting)
            name = re.split(r"[/\\]", value.rstrip("/\\"))[-1].lower() if isinstance(value, str) else ""
            if family := family_of(name):
                return Stated(f"config.json ({setting})", family, _quoted(str(value)))
    return None


def family_of(name: str) -> str | None:
    """The family that a model's or conversation's name implies."""
    return next((family for pattern, family in NAMES.items() if re.search(pattern, name.lower())), None)


def _by_tokens(folder: Path) -> Stated | None:
    """The chat format by tokens that only one family needs."""
    file = folder / "tokenizer.json"
    added = read_json(file).get("added_tokens") if file.is_file() else None
    tokens = {token.get("content") for token in added if isinstance(token, dict)} if isinstance(added, list) else set()
    mark = next((mark for mark in MARKS if mark in tokens), None)
    return None if mark is None else Stated("tokenizer.json", MARKS[mark], f"by its token {mark}")


def as_jinja(template: str, end: str) -> str:
    """Our template as a Jinja chat template.

    For transformers and mlx-vlm: it makes the same prompt and ends each answer with the token `end`.
    """
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
