"""Memory and time estimates before anything is loaded.

What each stage needs, how long it takes, and which settings fit this machine and Macs of each size.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_visalign.inference.policy import TINY
from mlx_visalign.models.clip import CLIPConfig
from mlx_visalign.models.hub import find_config
from mlx_visalign.preflight.memory import (
    FLOAT32,
    Setting,
    Shape,
    checkpoints_bytes,
    clip_bytes,
    read_shape,
    training_bytes,
    weights_bytes,
)
from mlx_visalign.preflight.throughput import rates_for, seconds_of
from mlx_visalign.preflight.workload import Answering, Workload, answering_bytes
from mlx_visalign.scorers.clip import CACHE_GB, TINY_CLIP
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.console import say
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.formatting import duration

GPU_SHARE = 0.7  # share of a Mac's memory that Metal gives the GPU: 11.45 of 16 GB, 17.2 of 24, 70 to 78 % above
PROMPT_WORDS = 64  # text tokens of a prompt: the template's and a short question's
MARGIN = 1.15  # estimates are accurate to 15 % (tests/preflight/test_memory.py, tests/preflight/test_workload.py)
NEAR = 0.75  # a run that needs more than this share of usable memory may have been killed for lack of it
SIZES_OF_MACS = (8, 16, 24, 32, 64)
RANKS = (128, 64, 16)  # suggested if the requested rank is too large
DEFAULT = Workload((Answering("answering", 1, 256, together=8, tokens=256, read=2),), trained=1)  # as SeVa's laptop preset


@dataclass(frozen=True)
class Forecast:
    """The memory estimate of a run."""

    shape: Shape
    setting: Setting
    workload: Workload

    @property
    def peaks(self) -> dict[str, float]:
        """Peak bytes of each stage and of the training."""
        stages = {stage.title: answering_bytes(self.shape, self.setting, stage) for stage in self.workload.stages}
        return stages | {"training": training_bytes(self.shape, self.setting)}

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    def suggest(self, limit: float) -> "Forecast | None":
        """The best settings that fit in `limit` bytes, or None.

        Prefers more bits, then a higher rank, then speed.
        """
        ranks = [self.setting.rank, *(rank for rank in RANKS if rank < self.setting.rank)]
        for bits in (16, 8, 4):
            for rank in ranks:
                for checkpoint in (False, True):
                    for one_by_one in (False, True):
                        found = self._with(bits, rank, checkpoint, one_by_one)
                        if MARGIN * found.peak <= limit:
                            return found
        return None

    def _with(self, bits: int, rank: int, checkpoint: bool, one_by_one: bool) -> "Forecast":
        """The same run with these settings. `one_by_one`: one prompt at a time, in every stage and in training."""
        past_rank = rank * (self.workload.rounds - 1)
        setting = replace(self.setting, bits=bits, number=2, rank=rank, past_rank=past_rank, checkpoint=checkpoint)
        if not one_by_one:
            return replace(self, setting=setting)
        stages = tuple(replace(stage, together=1) for stage in self.workload.stages)
        return Forecast(self.shape, replace(setting, batch=1), replace(self.workload, stages=stages))

    def __str__(self) -> str:
        """The settings that determine memory use."""
        setting, together = self.setting, max(stage.together for stage in self.workload.stages)
        asked = "1 prompt" if together == 1 else f"{together} prompts"
        kept = "recomputing layers (grad_checkpoint: true)" if setting.checkpoint else "keeping layers"
        return f"{setting.bits}-bit, rank {setting.rank}, batch size {setting.batch}, {kept}, {asked} at once"


def usable_bytes() -> float:
    """Bytes a model may use on this machine.

    Metal's recommended working set, or without Metal all physical memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float(mx.device_info().get("max_recommended_working_set_size", memory))


def training_needs(train: Any) -> dict[str, Any]:
    """Fields of `Setting` from DPO or PPO settings."""
    needs = {"rank": train.lora.rank, "batch": train.batch_size, "checkpoint": train.grad_checkpoint}
    if isinstance(train, PreferenceSettings):
        needs |= {"copies": len(train.loss.reads), "prefills": train.loss.prefills}
    return needs


def forecast(model: str, needs: Mapping[str, Any], workload: Workload = DEFAULT) -> Forecast:
    """The estimate for a model's folder and a workload.

    `needs` overrides fields of `Setting`.
    """
    shape, bits, number = read_shape(TINY if model == "tiny" else find_config(model))
    number = FLOAT32 if model == "tiny" else number  # `policy.load` casts the tiny model
    bits = 8 * number if bits >= 16 else bits
    longest = max(stage.tokens for stage in workload.stages)
    known: dict[str, Any] = {"bits": bits, "number": number, "prompt": shape.image_tokens + PROMPT_WORDS, "answer": longest}
    known |= {"copies": workload.copies, "scorer": _scorer_bytes(model, shape, workload)}
    setting = Setting(**{**known, **needs})
    return Forecast(shape, replace(setting, past_rank=setting.rank * (workload.rounds - 1)), workload)


def _scorer_bytes(model: str, shape: Shape, workload: Workload) -> float:
    """The CLIP that scores answers, with its cache of vectors; 0 if the method needs one but none is named (refused later)."""
    if workload.scorer is None or (workload.scorer[0] is None and model != "tiny"):
        return 0.0
    name, view = workload.scorer
    config = CLIPConfig.from_dict(read_json((TINY_CLIP if name is None else find_config(name)) / "config.json"))
    return clip_bytes(shape, config, shares=view == "pad") + CACHE_GB * 1e9


def in_brief(plan: Forecast) -> dict[str, Any]:
    """The memory estimate in gigabytes.

    `too_large`, with settings that fit, is included if the machine has too little memory.
    """
    peaks = plan.peaks
    figures = {"weights": weights_bytes(plan.shape, plan.setting), **peaks, "usable here": usable_bytes()}
    sentence = too_large(plan)
    return {
        "memory_gb": {name: _gigabytes(count) for name, count in figures.items()},
        "peak": max(peaks, key=lambda name: peaks[name]),
        "checkpoints_gb": _gigabytes(checkpoints_bytes(plan.shape, plan.setting.rank)),
        **({"too_large": sentence} if sentence else {}),
    }


def in_full(plan: Forecast) -> dict[str, Any]:
    """`in_brief` with run times and settings for Macs.

    Times are for this machine.
    """
    fitting = {f"{size} GB Mac": _for_a_mac(plan.suggest(GPU_SHARE * size * 1e9)) for size in SIZES_OF_MACS}
    rates = rates_for(plan.shape, plan.setting, plan.workload)
    seconds = seconds_of(plan.shape, plan.setting, plan.workload, rates)
    return {
        **in_brief(plan),
        **fitting,
        "gflops_here": {f"{count} tokens at once": _three_digits(rate / 1e9) for count, rate in rates.items()},
        "time_at_most": "; ".join(f"{name} {duration(count)}" for name, count in seconds.items())
        + f" (for the language model, estimated from matrix products timed on this machine; {_not_timed(plan)})",
    }


def for_people(figures: Mapping[str, Any]) -> dict[str, Any]:
    """`in_full` shortened for display.

    Without speeds, and with a single line for Macs if the same settings fit all sizes.
    """
    macs = [f"{size} GB Mac" for size in SIZES_OF_MACS]
    shown = {name: value for name, value in figures.items() if name not in (*macs, "gflops_here")}
    fitting = {figures[mac] for mac in macs}
    if len(fitting) > 1:
        return shown | {mac: figures[mac] for mac in macs}
    return shown | {"fits": f"every Mac from {SIZES_OF_MACS[0]} GB up: {fitting.pop()}"}


def _not_timed(plan: Forecast) -> str:
    """What the time does not include, a few per cent at 7B."""
    scorer = "" if plan.workload.scorer is None else " and the scoring CLIP"
    return f"without the vision tower{scorer}"


def too_large(plan: Forecast) -> str | None:
    """A sentence with settings that fit, or None.

    None if the run fits as it is.
    """
    limit = usable_bytes()
    if MARGIN * plan.peak <= limit:
        return None
    return (
        f"peak memory is about {plan.peak / 1e9:.1f} GB (give or take 15 %), but only {limit / 1e9:.1f} GB are usable "
        f"here. {_fitting(plan.suggest(limit))}"
    )


def warn_if_too_large(model: str, plan: Forecast) -> None:
    """Warn before loading a model that needs too much memory.

    macOS kills a process that runs out of memory without any message.
    """
    sentence = too_large(plan)
    if sentence:
        say(f"warning: {model}: {sentence}")


def report_previous_kill(place: str, plan: Forecast) -> None:
    """Say that the previous run was killed at `place`.

    Suggests smaller settings if memory may have been the cause.
    """
    message = f"The previous run was killed during {place} (no error was recorded)."
    if MARGIN * plan.peak >= NEAR * usable_bytes():
        smaller = plan.suggest(min(plan.peak / MARGIN, NEAR * usable_bytes()))
        message += f" It may have run out of memory: peak memory is about {plan.peak / 1e9:.1f} GB (give or take 15 %), and "
        message += f"{usable_bytes() / 1e9:.1f} GB are usable. If it happens again, use less. {_fitting(smaller)}"
    say(message)


def _fitting(plan: Forecast | None) -> str:
    return "No settings fit: this model is too large for the machine." if plan is None else f"Settings that fit: {plan}."


def _for_a_mac(plan: Forecast | None) -> str:
    return "too small for this model" if plan is None else str(plan)


def _gigabytes(count: float) -> float:
    return _three_digits(count / 1e9)


def _three_digits(number: float) -> float:
    return float(f"{number:.3g}")
