"""Log-probabilities of tokens.

This is the only place where ids are shifted against logits, and the only place where they are masked.
"""

from collections.abc import Callable

import mlx.core as mx
from jaxtyping import Bool, Float, Integer

Head = Callable[[mx.array], mx.array]


def token_logps(
    states: Float[mx.array, "n l d"], ids: Integer[mx.array, "n l"], head: Head | None = None
) -> Float[mx.array, "n l-1"]:
    """Log-probability of each token given those before it.

    log p(ids[t+1] | ids[..t]) for t = 0 .. l-2, in float32. `states[:, t]` is the model's output after reading `ids[:, t]`:
    final hidden states together with the head that turns them into logits, or the logits themselves without a head. The
    last state predicts a token beyond the row, so it is not passed to the head.
    """
    before, after = states[:, :-1], ids[:, 1:]
    logits = (before if head is None else head(before)).astype(mx.float32)
    chosen = mx.take_along_axis(logits, after[..., None], axis=-1)[..., 0]
    return chosen - mx.logsumexp(logits, axis=-1)


def sum_logps(logps: Float[mx.array, "n l"], mask: Bool[mx.array, "n l"]) -> Float[mx.array, " n"]:
    """Masked sum of log-probabilities, one per row.

    Never an average: DPO's log-ratio is that of complete answers.
    """
    return mx.where(mask, logps, 0.0).sum(axis=-1)
