"""The model card (README.md) of an upload.

Says what it is, its origin, measurements and usage. Text from configs and reports is untrusted: it is escaped as text or code
and never interpreted as Markdown.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from mlx_visalign.reporting.summary import TABLE, sentences
from mlx_visalign.utils.config import dump

Kind = Literal["adapter", "PEFT adapter", "model"]
USE: dict[Kind, str] = {
    "adapter": "hf download {repo} --local-dir adapter\n"
    'visalign generate --model MODEL --adapter-path adapter --image photo.jpg --prompt "Describe this image in detail."',
    "PEFT adapter": "model = PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(BASE), {repo!r})",
    "model": "hf download {repo} --local-dir model\n"
    'visalign generate --model model --image photo.jpg --prompt "Describe this image in detail."',
}
WHAT: dict[Kind, str] = {
    "adapter": "A LoRA adapter for a LLaVA model, in the format of mlx-lm and mlx-vlm",
    "PEFT adapter": "A LoRA adapter for a LLaVA model, in the format of PEFT",
    "model": "A LLaVA model for MLX",
}


@dataclass(frozen=True)
class Subject:
    """What a card describes.

    base   the Hub id of the model that it was made from
    about  what its own config says
    """

    repo: str
    kind: Kind
    base: str | None
    about: Mapping[str, Any]


def make_card(subject: Subject, report: Mapping[str, Any] | None) -> ModelCard:
    """The card, with results if there is a report.

    `report` is the content of a run's report.json. Paths on the user's disk are left out.
    """
    method = subject.about.get("method") or (report or {}).get("settings", {}).get("method")
    adapts = subject.kind != "model"
    data = ModelCardData(
        base_model=subject.base,
        library_name="peft" if subject.kind == "PEFT adapter" else "mlx",
        pipeline_tag="image-text-to-text",
        tags=["llava", "visalign", *(["lora"] if adapts else []), *([str(method)] if method else [])],
    )
    parts = [f"# {subject.repo.split('/')[-1]}", _head(subject, method), _origin(subject), _use(subject)]
    if report is not None:
        parts += [_figures(report), "\n".join(f"- {text(sentence)}" for sentence in sentences(report)), _settings(report)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _head(subject: Subject, method: Any) -> str:
    return (
        f"{WHAT[subject.kind]}"
        + (f", aligned with the method {code(str(method))}." if method else ".")
        + " Made with mlx_visalign."
    )


def _origin(subject: Subject) -> str:
    base = f"[{subject.base}](https://huggingface.co/{subject.base}), whose licence applies" if subject.base else "not stated"
    said = [f"- {name.replace('_', ' ')}: {code(str(value))}" for name, value in subject.about.items()]
    return "\n".join(["## Origin", "", f"- base model: {base}", *said])


def _use(subject: Subject) -> str:
    language = "python" if subject.kind == "PEFT adapter" else "sh"
    return f"## How to use it\n\n{fenced(USE[subject.kind].format(repo=subject.repo), language)}"


def _figures(report: Mapping[str, Any]) -> str:
    """The report's table: before, after, and the change with its 95 % interval."""
    rows = [
        f"## Results: {text(report['benchmark']['name'])}",
        "",
        "| | before | after | change, 95 % interval |",
        "|---|---:|---:|---:|",
    ]
    for group, (title, figures) in TABLE.items():
        if group not in report["change"]:
            continue
        for name, shown in figures.items():
            before, after, change = (report[side][group][name] for side in ("before", "after", "change"))
            moved, low, high = (shown.format(change[side], sign="+") for side in ("value", "low", "high"))
            sides = f"{shown.format(before['value'])} | {shown.format(after['value'])}"
            rows.append(f"| {title}: {shown.label} | {sides} | {moved} [{low}, {high}] |")
    return "\n".join(rows)


def _settings(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    settings = fenced(dump(report["settings"]["settings"]).strip(), "yaml")
    return f"## Settings\n\n{settings}\n\nMade with {text(versions)}."


def text(raw: str) -> str:
    """Text on one line with all Markdown escaped."""
    return re.sub(r"[\\`<\[\]|]", r"\\\g<0>", " ".join(raw.split()))


def code(raw: str) -> str:
    """Text on one line as inline code."""
    line = " ".join(raw.split())
    fence = _longer_fence(line)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def fenced(block: str, language: str) -> str:
    """A fenced block of code that its content cannot close."""
    fence = max("```", _longer_fence(block), key=len)
    return f"{fence}{language}\n{block}\n{fence}"


def _longer_fence(raw: str) -> str:
    """One more backtick than the longest run of backticks in the text."""
    return "`" * (1 + max(map(len, re.findall("`+", raw)), default=0))
