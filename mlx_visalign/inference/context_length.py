"""Whether prompts and answers fit into the positions that a model was made for; beyond them it talks nonsense, silently."""

from collections.abc import Sequence

from mlx_visalign.data.pair_formats import PlacedPair
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.utils.console import say, sift
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.formatting import counted


def pairs_that_fit(policy: Policy, placed: Sequence[PlacedPair], skip_bad: bool) -> list[PlacedPair]:
    """The pairs, none longer than the model's positions. Raises UserError with the rows that are, or leaves them out."""

    def fit(one: PlacedPair) -> PlacedPair:
        if fault := too_long(policy, one):
            raise UserError(fault)
        return one

    return sift(placed, fit, skip_bad, "pairs")


def too_long(policy: Policy, placed: PlacedPair) -> str | None:
    """What is wrong with a pair that is longer than the model's positions, its image included."""
    pair = placed.pair
    answer = max(len(policy.response_ids(pair.chosen)), len(policy.response_ids(pair.rejected)))
    tokens = len(policy.prompt_ids(pair.prompt, policy.image_tokens_of(pair.images[0]))) + answer
    if policy.positions is None or tokens <= policy.positions:
        return None
    return f"{placed.where}: {tokens:,} tokens with image and longer answer, and the model has {policy.positions:,} positions."


def answer_length(policy: Policy, question: str, wanted: int) -> int:
    """How many tokens an answer may have, `wanted` at most; said where fewer fit. UserError where not one does."""
    if policy.positions is None:
        return wanted
    prompt = len(policy.prompt_ids(question))
    left = policy.positions - prompt
    taken = f"the prompt takes {prompt:,} of the model's {policy.positions:,} positions, its image included"
    if left < 1:
        raise UserError(f"No answer fits: {taken}. Ask with fewer words.")
    if left < wanted:
        say(f"Answers may have {left:,} tokens and not {wanted:,}: {taken}.")
    return min(left, wanted)


def require_prompts_fit(policy: Policy, prompts: Sequence[Prompt], answer: int) -> None:
    """UserError for prompts that leave no position for an answer; said where the longest answers do not fit."""
    if policy.positions is None:
        return
    lengths = {prompt.id: len(policy.prompt_ids(prompt.prompt)) for prompt in prompts}
    if over := {name: length for name, length in lengths.items() if length >= policy.positions}:
        found = [f"{name} has {length:,} tokens with its image" for name, length in over.items()]
        head = f"{counted(len(over), 'prompt')} too long for the model's {policy.positions:,} positions"
        raise UserError(listed(head, found, "Shorten them, or take them out."))
    longest = max(lengths.values(), default=0)
    if longest + answer > policy.positions:
        say(
            f"warning: an answer may have {answer:,} tokens, but the longest prompt leaves {policy.positions - longest:,} of "
            f"the model's {policy.positions:,} positions. What goes beyond them is nonsense: lower --max-tokens."
        )
