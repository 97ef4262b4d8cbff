"""Checks that prompts and answers fit the model's context.

Beyond the positions that a model was trained for it produces nonsense without any error.
"""

from collections.abc import Sequence

from mlx_visalign.data.pair_formats import PlacedPair
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.utils.console import say, sift
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.formatting import counted


def pairs_that_fit(policy: Policy, placed: Sequence[PlacedPair], skip_bad: bool) -> list[PlacedPair]:
    """The pairs that fit the model's context.

    Raises UserError naming the rows that are too long, or with `skip_bad` drops them.
    """

    def fit(one: PlacedPair) -> PlacedPair:
        if fault := too_long(policy, one):
            raise UserError(fault)
        return one

    return sift(placed, fit, skip_bad, "pairs")


def too_long(policy: Policy, placed: PlacedPair) -> str | None:
    """The error for a pair longer than the model's context.

    None if the pair fits, image included.
    """
    pair = placed.pair
    answer = max(map(len, policy.pair_ids(pair)))
    tokens = len(policy.prompt_ids(pair.prompt, policy.image_tokens_of(pair.images[0]))) + answer
    if policy.positions is None or tokens <= policy.positions:
        return None
    return f"{placed.where}: {tokens:,} tokens with image and longer answer, but the model has {policy.positions:,} positions."


def answer_length(policy: Policy, question: str, wanted: int) -> int:
    """The maximum length of an answer in tokens.

    `wanted`, or fewer, with a message, if only fewer fit. Raises UserError if none fits.
    """
    if policy.positions is None:
        return wanted
    prompt = len(policy.prompt_ids(question))
    left = policy.positions - prompt
    taken = f"the prompt takes {prompt:,} of the model's {policy.positions:,} positions, its image included"
    if left < 1:
        raise UserError(f"No answer fits: {taken}. Shorten the question.")
    if left < wanted:
        say(f"Answers are limited to {left:,} tokens instead of {wanted:,}: {taken}.")
    return min(left, wanted)


def require_prompts_fit(policy: Policy, prompts: Sequence[Prompt], answer: int) -> None:
    """Refuse prompts that leave no room for an answer.

    Warns if the longest answers do not fit.
    """
    if policy.positions is None:
        return
    lengths = {prompt.id: len(policy.prompt_ids(prompt.prompt)) for prompt in prompts}
    if over := {name: length for name, length in lengths.items() if length >= policy.positions}:
        found = [f"{name} has {length:,} tokens with its image" for name, length in over.items()]
        head = f"{counted(len(over), 'prompt')} too long for the model's {policy.positions:,} positions"
        raise UserError(listed(head, found, "Shorten or remove them."))
    longest = max(lengths.values(), default=0)
    if longest + answer > policy.positions:
        say(
            f"warning: an answer may have {answer:,} tokens, but the longest prompt leaves {policy.positions - longest:,} of "
            f"the model's {policy.positions:,} positions. Tokens beyond them are nonsense: lower --max-tokens."
        )
