"""Fixed probe inputs for the doctor's checks.

Two prompts with two answers each, scored in every way this package scores. Results are log-probabilities
[prompt, answer, token] in float32 nats, 0 after an answer's end.
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
    """A model with probe prompts and answers.

    With `pictures` it uses complete prompts with images, which have a long prefix; without, only a few of their tokens.
    """

    def __init__(self, policy: Policy, pictures: bool):
        self.policy, self.decoder = policy, policy.decoder
        numbers = [policy.image_tokens_of(image) for image in gradients()]
        whole = [policy.prompt_ids(question, number) for question, number in zip(QUESTIONS, numbers, strict=True)]
        # Without pictures: the first token and some of the last, of different lengths. Enough to find faults, and fast.
        self.prompts = whole if pictures else [[ids[0], *ids[-kept:]] for ids, kept in zip(whole, (7, 4), strict=True)]
        self.answers = [policy.response_ids(answer) for answer in ANSWERS]
        self.features = policy.features([policy.pixels(image) for image in gradients()]) if pictures else None

    @property
    def dtype(self) -> mx.Dtype:
        return self.decoder.norm.weight.dtype

    def embeds(self, rows: Sequence[int], ids: mx.array) -> Float[mx.array, "b l e"]:
        text = self.decoder.embed(ids)
        if self.features is None:
            return text
        return merge(text, ids, self.policy.image_token, self.policy.family.embeds(self.policy.model, self._seen(rows)))

    def _seen(self, rows: Sequence[int]) -> Features:
        """The image features of some prompts."""
        if self.features is None:
            return []
        if isinstance(self.features, list):
            return [self.features[row] for row in rows]
        return self.features[mx.array(list(rows))]

    def _prefill(self, rows: Sequence[int], ids: mx.array, mask: np.ndarray, embeds: mx.array) -> Prefix:
        positions = self.policy.family.positions(self.policy.model, ids, mask, self._seen(rows))
        return prefill(self.decoder, embeds, mask, positions=positions)

    def prefix(self, rows: Sequence[int], noise: float = 0.0) -> Prefix:
        """Prefill prompts, with optional relative noise on the inputs."""
        ids, mask = right_pad([self.prompts[row] for row in rows])
        embeds = self.embeds(rows, ids)
        if noise:
            embeds = embeds * (1 + noise * mx.random.uniform(-1, 1, embeds.shape, key=mx.random.key(0))).astype(embeds.dtype)
        return self._prefill(rows, ids, mask, embeds)

    def cached(self, rows: Sequence[int], noise: float = 0.0) -> Float[np.ndarray, "b 2 l"]:
        reading = self.policy.read(self.prefix(rows, noise), [self.answers] * len(rows))
        return np.array(mx.where(reading.mask, reading.logps, 0)).reshape(len(rows), len(self.answers), -1)

    @cached_property
    def together(self) -> Logps:
        """Both prompts batched over the prefix cache, as in training."""
        return self.cached([0, 1])

    @cached_property
    def alone(self) -> Logps:
        """One prompt at a time."""
        return np.concatenate([self.cached([row]) for row in (0, 1)])

    @cached_property
    def allowed(self) -> float:
        """Tolerance between two ways of scoring, in nats.

        It depends on the model's dtype and on the rounding errors measured on this device.
        """
        floor = np.abs(self.cached([0, 1], rounding(self.dtype)) - self.together).max()
        return tolerance(self.dtype, float(floor))

    def plain(self) -> Logps:
        """Each answer alone, unpadded, by the model's own forward."""
        return self._each(self._plain_row)

    def stepwise(self) -> Logps:
        """Each answer alone, token by token, as in sampling."""
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
        """Hidden states of an answer over the cached first prompt."""
        ids = mx.array([answer])
        return extend(self.decoder, self.prefix([0]).branch(1), ids, np.ones(ids.shape, dtype=bool))[0]

    def prompt_keys(self, last: int) -> Float[mx.array, "1 p d"]:
        """The last layer's keys of the first prompt.

        The prompt's last token is replaced by `last`.
        """
        ids = mx.array([[*self.prompts[0][:-1], last]])
        keys, _ = self._prefill([0], ids, np.ones(ids.shape, dtype=bool), self.embeds([0], ids)).kv[-1]
        return keys.transpose(0, 2, 1, 3).flatten(2)


def gradients() -> list[Image.Image]:
    """Two probe images, a square and a wide one."""
    return [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB").crop((0, 0, 256, 120))]


@contextmanager
def one_more_round(policy: Policy, changes: bool) -> Iterator[int]:
    """Add a round of LoRA during the block.

    The round is fresh, or with `changes` has an effect. Yields the number of rounds before. Afterwards every layer is the
    same object as before.
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
