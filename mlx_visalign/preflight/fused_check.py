"""Compares logits of a fused model with base + adapter."""

from pathlib import Path

import mlx.core as mx
from jaxtyping import Float
from PIL import Image

from mlx_visalign.convert.layouts.peft_folder import is_peft
from mlx_visalign.inference.policy import PROBE, Policy, load


def compare_fused(model: Path, adapter: Path, fused: Path) -> str:
    """A sentence with the largest difference in logits.

    Compares the logits of an answer's first token, for a fixed image and question. Only one model at a time is in memory.
    """
    policy = load(model)
    dtype = mx.float32 if policy.dtype == "float32" else None
    before = _logits(policy)
    if is_peft(adapter):  # cannot be switched on before `convert peft`
        del policy
        change = mx.abs(_logits(load(fused, dtype=dtype)) - before).max().item()
        return f"fused model changes logits by {change:.2g} compared with the model without the adapter"
    policy.load_adapter(adapter)
    on = _logits(policy)
    del policy
    difference = mx.abs(_logits(load(fused, dtype=dtype)) - on).max().item()
    change = mx.abs(on - before).max().item()
    return (
        f"fused model changes logits by {difference:.2g} compared with adapter-on "
        f"(the adapter itself changes them by {change:.2g})"
    )


def _logits(policy: Policy) -> Float[mx.array, "1 v"]:
    logits = policy.first_logits(PROBE, Image.linear_gradient("L").convert("RGB"))
    mx.eval(logits)  # now, before the caller changes or deletes the model
    return logits
