"""A model as the doctor looks at it: two prompts with two answers each, read in every way that this package reads.

Everything is told in log-probabilities [prompt, answer, token] in float32 nats, 0 where an answer is over.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import mlx.core as mx
import numpy as np
from jaxtyping import Float
from mlx.utils import tree_unflatten
from PIL import Image

from mlx_visalign.inference.logprobs import token_logps
from mlx_visalign.inference.policy import PROBE, Policy
from mlx_visalign.inference.prefix_cache import Prefix, extend, prefill, right_pad
from mlx_visalign.models.decoder import merge, plain_logits
from mlx_visalign.models.families.family import Features
from mlx_visalign.models.lora import LoRASettings, adapters, attach
from mlx_visalign.utils.tolerances import rounding, tolerance

QUESTIONS = (PROBE, "Is there a dog?")
ANSWERS = ("There is a red ball on the table.", "No.")
Logps = Float[np.ndarray, "2 2 l"]


class ModelProbe:
    """`pictures`: whole prompts with their images are read, which takes a long prefix; else a few of their words."""

    def __init__(self, policy: Policy, pictures: bool):
        self.policy, self.decoder = policy, policy.decoder
        numbers = [policy.image_tokens_of(image) for image in gradients()]
        whole = [policy.prompt_ids(question, number) for question, number in zip(QUESTIONS, numbers, strict=True)]
        # Without pictures the first token and a few of the last, of different lengths: enough to be wrong, and quick.
        self.prompts = whole if pictures else [[ids[0], *ids[-kept:]] for ids, kept in zip(whole, (7, 4), strict=True)]
        self.answers = [policy.response_ids(answer) for answer in ANSWERS]
        self.features = policy.features([policy.pixels(image) for image in gradients()]) if pictures else None

    @property
    def dtype(self) -> mx.Dtype:
        return self.decoder.norm.weight.dtype

    def embeds(self, rows: Sequence[int], ids: mx.array) -> Float[mx.array, "b l e"]:
        words = self.decoder.embed(ids)
        if self.features is None:
            return words
        return merge(words, ids, self.policy.image_token, self.policy.family.embeds(self.policy.model, self._seen(rows)))

    def _seen(self, rows: Sequence[int]) -> Features:
        """The features of some prompts' pictures."""
        if self.features is None:
            return []
        if isinstance(self.features, list):
            return [self.features[row] for row in rows]
        return self.features[mx.array(list(rows))]

    def _prefill(self, rows: Sequence[int], ids: mx.array, mask: np.ndarray, embeds: mx.array) -> Prefix:
        positions = self.policy.family.positions(self.policy.model, ids, mask, self._seen(rows))
        return prefill(self.decoder, embeds, mask, positions=positions)

    def prefix(self, rows: Sequence[int], noise: float = 0.0) -> Prefix:
        """The prompts `rows` read; `noise` changes what goes in by up to this share of it."""
        ids, mask = right_pad([self.prompts[row] for row in rows])
        embeds = self.embeds(rows, ids)
        if noise:
            embeds = embeds * (1 + noise * mx.random.uniform(-1, 1, embeds.shape, key=mx.random.key(0))).astype(embeds.dtype)
        return self._prefill(rows, ids, mask, embeds)

    def folded(self, rows: Sequence[int], noise: float = 0.0) -> Float[np.ndarray, "b 2 l"]:
        reading = self.policy.read(self.prefix(rows, noise), [self.answers] * len(rows))
        return np.array(mx.where(reading.mask, reading.logps, 0)).reshape(len(rows), len(self.answers), -1)

    @cached_property
    def together(self) -> Logps:
        """Both prompts in one batch, through the fold: how training reads."""
        return self.folded([0, 1])

    @cached_property
    def alone(self) -> Logps:
        """One prompt at a time."""
        return np.concatenate([self.folded([row]) for row in (0, 1)])

    @cached_property
    def allowed(self) -> float:
        """How far two ways of reading may be apart on this model and this device."""
        floor = np.abs(self.folded([0, 1], rounding(self.dtype)) - self.together).max()
        return tolerance(self.dtype, float(floor))

    def plain(self) -> Logps:
        """Every answer by itself, unpadded, through the model's own forward."""
        return self._each(self._plain_row)

    def stepwise(self) -> Logps:
        """Every answer by itself, token by token over the cache: how answers are made."""
        return self._each(self._stepwise_row)

    def _each(self, read: Callable[[int, list[int]], mx.array]) -> Logps:
        logps = np.zeros((2, 2, max(map(len, self.answers))), dtype=np.float32)
        for row in (0, 1):
            for column, answer in enumerate(self.answers):
                logps[row, column, : len(answer)] = read(row, answer)
        return logps

    def plain_logits(self, row: int, answer: list[int]) -> Float[mx.array, "1 l v"]:
        ids = mx.array([self.prompts[row] + answer])
        return plain_logits(self.policy.model, ids, self.embeds([row], ids))

    def _plain_row(self, row: int, answer: list[int]) -> mx.array:
        ids = mx.array([self.prompts[row] + answer])
        return token_logps(self.plain_logits(row, answer), ids)[0, -len(answer) :]

    def _stepwise_row(self, row: int, answer: list[int]) -> mx.array:
        branches = self.prefix([row]).branch(1)
        states = [branches.state[:, None]]
        for token in answer:
            state, branches = extend(self.decoder, branches, mx.array([[token]]), np.ones((1, 1), dtype=bool))
            states.append(state)
        return token_logps(mx.concatenate(states, axis=1), mx.array([[0, *answer]]), self.decoder.head)[0]

    def answer_states(self, answer: list[int]) -> Float[mx.array, "1 l e"]:
        """The states of an answer to the first prompt, through the fold."""
        ids = mx.array([answer])
        return extend(self.decoder, self.prefix([0]).branch(1), ids, np.ones(ids.shape, dtype=bool))[0]

    def prompt_keys(self, last: int) -> Float[mx.array, "1 p d"]:
        """The last layer's keys of the first prompt, whose last token is replaced."""
        ids = mx.array([[*self.prompts[0][:-1], last]])
        keys, _ = self._prefill([0], ids, np.ones(ids.shape, dtype=bool), self.embeds([0], ids)).kv[-1]
        return keys.transpose(0, 2, 1, 3).flatten(2)


def gradients() -> list[Image.Image]:
    """Two pictures that every machine can draw, a square and a wide one."""
    return [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB").crop((0, 0, 256, 120))]


@contextmanager
def one_more_round(policy: Policy, changes: bool) -> Iterator[int]:
    """Within the block the model has one more round of LoRA, fresh or (`changes`) with effect. Gives how many it had.

    After it every layer is the very one it was.
    """
    before = adapters(policy.model)
    rounds = len(next(iter(before.values())).rounds()) if before else 0
    attach(policy.model, LoRASettings(rank=2), mx.random.key(0))
    after = adapters(policy.model)
    try:
        if changes:
            for layer in after.values():
                layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
        yield rounds
    finally:
        policy.model.update_modules(tree_unflatten([(name, before.get(name, layer.linear)) for name, layer in after.items()]))
