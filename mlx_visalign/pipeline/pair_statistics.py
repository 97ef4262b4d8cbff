"""Pairs as they will be trained: lengths, tokens."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.text import Text

from mlx_visalign.data.records import Pair
from mlx_visalign.inference.policy import Policy


def measure(policy: Policy, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Token counts of the pairs: {"min", "median", "max"} per part.

    Prompts include the image's tokens.
    """
    prompts = [len(policy.prompt_ids(pair.prompt)) for pair in pairs]
    chosen, rejected = ([len(policy.pair_ids(pair)[side]) for pair in pairs] for side in (0, 1))
    return {
        "pairs": len(pairs),
        "images": len({image for pair in pairs for image in pair.images}),
        "same_answers": sum(pair.chosen == pair.rejected for pair in pairs),
        "image_tokens": policy.image_tokens,
        "prompt_tokens": _spread(prompts),
        "chosen_tokens": _spread(chosen),
        "rejected_tokens": _spread(rejected),
        "trained_tokens": sum(chosen) + sum(rejected),
        "longest_row": max(prompt + max(answers) for prompt, *answers in zip(prompts, chosen, rejected, strict=True)),
        **({} if policy.positions is None else {"positions": policy.positions}),
    }


def longest_answer(measured: dict[str, Any]) -> int:
    """Tokens of the longest answer, from what `measure` returned."""
    return max(measured[part]["max"] for part in ("chosen_tokens", "rejected_tokens"))


def show_pair(policy: Policy, pair: Pair) -> Text:
    """A pair as it is trained, for the terminal.

    The prompt is grey; trained tokens are coloured and separated by bars.
    """
    prompt = policy.prompt_ids(pair.prompt)
    start = prompt.index(policy.image_token)
    before, after = prompt[:start], prompt[start + policy.image_tokens :]
    image = f"[{policy.image_tokens} image tokens, never cut]"
    text = Text(f"{', '.join(pair.images)}\n")
    text.append(f"prompt, {len(prompt)} tokens, not trained:\n", "bold")
    text.append(f"{_join(policy, before)}{image}{_join(policy, after)}\n", "dim")
    for name, ids, style in zip(("chosen", "rejected"), policy.pair_ids(pair), ("green", "red"), strict=True):
        text.append(f"{name}, {len(ids)} tokens, all trained:\n", "bold")
        text.append(f"{_join(policy, ids, '|')}\n", style)
    return text


def _join(policy: Policy, ids: list[int], bar: str = "") -> str:
    pieces = policy.tokenizer.convert_ids_to_tokens(ids)
    return bar.join(pieces).replace("▁", " ").replace("<0x0A>", "\n")


def _spread(counts: list[int]) -> dict[str, float]:
    return {"min": min(counts), "median": median(counts), "max": max(counts)}
