"""Batched sampling: greedy, or temperature and top-p.

Every continuation has its own random key, from which one uniform number per step is drawn, so its tokens do not depend on
the rest of the batch: batched and sequential sampling give the same tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from jaxtyping import Float, Integer

from mlx_visalign.inference.prefix_cache import Continuations, extend
from mlx_visalign.models.decoder import Decoder
from mlx_visalign.utils.schema import require


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    max_tokens   per answer, end token included (1 or more)
    temperature  0 is greedy
    top_p        in (0, 1]
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(
            self,
            max_tokens=(self.max_tokens >= 1, "1 or more"),
            temperature=(0 <= self.temperature < math.inf, "0 or more, and finite"),
            top_p=(0 < self.top_p <= 1, "above 0 and at most 1"),
        )


def sample(
    decoder: Decoder,
    branches: Continuations,
    state: Float[mx.array, "n e"],
    end: int,
    sampling: Sampling,
    keys: list[mx.array] | None = None,
) -> list[list[int]]:
    """Sample every continuation's token ids, end token included.

    `state`: the hidden state of each continuation's last token. `keys`: one random key per continuation, required unless
    greedy. An answer cut off at max_tokens has no end token, which distinguishes it from a finished one.
    """
    steps = list(sample_steps(decoder, branches, state, end, sampling, keys))
    return [_until(row, end) for row in np.stack(steps, axis=1).tolist()]


def sample_steps(
    decoder: Decoder,
    branches: Continuations,
    state: Float[mx.array, "n e"],
    end: int,
    sampling: Sampling,
    keys: list[mx.array] | None = None,
) -> Iterator[Integer[np.ndarray, " n"]]:
    """As `sample`, one step at a time.

    Yields every continuation's next token; tokens after the end token are meaningless.
    """
    uniform = None if sampling.temperature == 0 else _uniforms(keys, len(branches.mask), sampling.max_tokens)
    done = np.zeros(len(branches.mask), dtype=bool)
    for step in range(sampling.max_tokens):
        logits = decoder.head(state).astype(mx.float32)
        tokens = mx.argmax(logits, axis=-1) if uniform is None else _draw(logits, uniform[:, step], sampling)
        found = np.array(tokens)
        yield found
        done |= found == end
        if done.all() or step + 1 == sampling.max_tokens:
            return
        states, branches = extend(decoder, branches, tokens[:, None], np.ones((len(done), 1), dtype=bool))
        state = states[:, 0]


def _uniforms(keys: list[mx.array] | None, rows: int, steps: int) -> Float[mx.array, "n s"]:
    if keys is None or len(keys) != rows:
        raise ValueError(f"sampling needs one random key for each of the {rows} continuations")
    return mx.stack([mx.random.uniform(shape=(steps,), key=key) for key in keys])


def _draw(logits: Float[mx.array, "n v"], uniform: Float[mx.array, " n"], sampling: Sampling) -> Integer[mx.array, " n"]:
    """Inverse transform sampling over tokens in descending order of probability, truncated at top-p."""
    probabilities = mx.softmax(logits / sampling.temperature, axis=-1)
    order = mx.argsort(-probabilities, axis=-1)
    falling = mx.take_along_axis(probabilities, order, axis=-1)
    before = mx.cumsum(falling, axis=-1) - falling
    kept = mx.where(before < sampling.top_p, falling, 0.0)
    cumulative = mx.cumsum(kept, axis=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    rank = mx.minimum((cumulative <= target).sum(axis=-1), (kept > 0).sum(axis=-1) - 1)
    return mx.take_along_axis(order, rank[:, None], axis=-1)[:, 0]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row
