"""The memory plan: what fits this machine, what fits a Mac of each size, and what to say where something does not."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_visalign.convert.hub import find_model
from mlx_visalign.footprint import (
    FLOAT32,
    Setting,
    Shape,
    checkpoints_bytes,
    pair_flops,
    read_shape,
    sampling_bytes,
    training_bytes,
    weights_bytes,
)
from mlx_visalign.policy import TINY
from mlx_visalign.progress import say

GPU_SHARE = 0.7  # of a Mac's memory, what Metal lets the GPU have: 11.45 of 16 GB, 17.2 of 24, 70 to 78 % above
PROMPT_WORDS = 64  # tokens of a prompt beside the image's: the template's and a short question's
MARGIN = 1.15  # the plan is right to 15 % (tests/test_footprint.py)
MEASURED_SECONDS = 0.3
SIZES_OF_MACS = (8, 16, 24, 32, 64)


def usable_bytes() -> float:
    """What this machine lets a model have: Metal's working set, or else all of the memory there is."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float(mx.device_info().get("max_recommended_working_set_size", memory))


def peak_bytes(shape: Shape, setting: Setting) -> float:
    """The higher of the two peaks: a run samples first and trains then."""
    return max(training_bytes(shape, setting), sampling_bytes(shape, setting))


def suggest(shape: Shape, setting: Setting, limit: float) -> Setting | None:
    """The first setting that surely takes at most `limit` bytes: as precise as there is room for, then rank, then speed."""
    for bits in (16, 8, 4):
        for rank, checkpoint in ((128, False), (128, True), (64, True), (16, True)):
            wanted = replace(setting, bits=bits, rank=rank, checkpoint=checkpoint, batch=1, number=2)
            for answers in (setting.answers, 1):
                fitting = replace(wanted, answers=answers)
                if MARGIN * peak_bytes(shape, fitting) <= limit:
                    return fitting
    return None


def _words(setting: Setting | None) -> str:
    if setting is None:
        return "too small for this model"
    kept = "recomputing layers (checkpoint_layers: true)" if setting.checkpoint else "keeping layers"
    return f"{setting.bits}-bit, rank {setting.rank}, batch size 1, {kept}, {setting.answers} prompts at once"


def training_needs(train: Any) -> dict[str, Any]:
    """What the settings of a training, DPO's or PPO's, say of a `Setting`."""
    return {"rank": train.lora.rank, "batch": train.batch_size, "checkpoint": train.checkpoint_layers}


def find_folder(model: str) -> Path:
    """The folder of a model named as on the command line."""
    return TINY if model == "tiny" else find_model(model)


def setting_for(model: str, needs: Mapping[str, Any]) -> tuple[Shape, Setting]:
    """A model's shape, and the setting that its folder and `needs` (fields of `Setting`) make."""
    shape, bits, number = read_shape(find_folder(model))
    number = FLOAT32 if model == "tiny" else number  # `policy.load` casts it
    bits = 8 * number if bits >= 16 else bits
    return shape, Setting(**{"bits": bits, "number": number, "prompt": shape.image_tokens + PROMPT_WORDS, **needs})


def memory_plan(model: str, needs: Mapping[str, Any]) -> dict[str, Any]:
    """The plan in gigabytes, and what to do where it is more than the machine has."""
    shape, setting = setting_for(model, needs)
    figures = {
        "weights": weights_bytes(shape, setting),
        "sampling": sampling_bytes(shape, setting),
        "training": training_bytes(shape, setting),
        "usable here": usable_bytes(),
    }
    told: dict[str, Any] = {
        "memory_gb": {name: _gigabytes(count) for name, count in figures.items()},
        "checkpoints_gb": _gigabytes(checkpoints_bytes(shape, setting.rank)),
    }
    sentence = too_large(shape, setting)
    return told | ({"too_large": sentence} if sentence else {})


def too_large(shape: Shape, setting: Setting) -> str | None:
    """A sentence with the setting that fits, where this one does not."""
    peak, limit = peak_bytes(shape, setting), usable_bytes()
    if MARGIN * peak <= limit:
        return None
    return (
        f"about {peak / 1e9:.1f} GB (give or take 15 %) are needed at the peak and {limit / 1e9:.1f} GB can be used here. "
        f"What fits: {_words(suggest(shape, setting, limit))}."
    )


def warn_if_too_large(model: str, needs: Mapping[str, Any]) -> None:
    """Said before a model is loaded: on a Mac the system kills a process that asks for too much, without a word."""
    sentence = too_large(*setting_for(model, needs))
    if sentence:
        say(f"warning: {model}: {sentence}")


def memory_report(model: str) -> dict[str, Any]:
    """For the doctor: the plan with the default settings, what fits Macs of each size, and what a pair costs."""
    shape, setting = setting_for(model, {})
    seconds = pair_flops(shape, setting) / measured_rate(shape, setting)
    return {
        **memory_plan(model, {}),
        **{f"{size} GB Mac": _words(suggest(shape, setting, GPU_SHARE * size * 1e9)) for size in SIZES_OF_MACS},
        "seconds_a_pair": f"{seconds:.2g} with answers of {setting.answer} tokens, a rough guess from matrix products alone",
    }


def measured_rate(shape: Shape, setting: Setting) -> float:
    """Floating-point operations a second of this machine, in a product as large as those of the model's MLP."""
    dtype = mx.float32 if setting.number == FLOAT32 else mx.bfloat16
    tokens = mx.random.normal((setting.prompt, shape.width)).astype(dtype)
    weights = mx.random.normal((shape.width, shape.inner)).astype(dtype)
    mx.eval(tokens @ weights)  # once for nothing: the first is slower
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURED_SECONDS:
        mx.eval(tokens @ weights)
        done += 1
    return 2 * tokens.size * shape.inner * done / (time.perf_counter() - started)


def _gigabytes(count: float) -> float:
    return float(f"{count / 1e9:.3g}")
