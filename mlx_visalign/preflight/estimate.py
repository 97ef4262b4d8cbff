"""The plan, told before anything is loaded: what each stage takes, what fits this machine and Macs of each size, how long."""

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

GPU_SHARE = 0.7  # of a Mac's memory, what Metal lets the GPU have: 11.45 of 16 GB, 17.2 of 24, 70 to 78 % above
PROMPT_WORDS = 64  # tokens of a prompt beside the image's: the template's and a short question's
MARGIN = 1.15  # the plan is right to 15 % (tests/preflight/test_memory.py, tests/preflight/test_workload.py)
NEAR = 0.75  # of what can be used; where more is needed a death without a word may well have been for want of memory
SIZES_OF_MACS = (8, 16, 24, 32, 64)
RANKS = (128, 64, 16)  # that are suggested where the one asked for is too large
DEFAULT = Workload((Answering("answering", 1, 256, together=8, tokens=256, read=2),), trained=1)  # as SeVa's laptop preset


@dataclass(frozen=True)
class Forecast:
    """What a run asks of a machine."""

    shape: Shape
    setting: Setting
    workload: Workload

    @property
    def peaks(self) -> dict[str, float]:
        """The most bytes that each stage and the training hold."""
        stages = {stage.title: answering_bytes(self.shape, self.setting, stage) for stage in self.workload.stages}
        return stages | {"training": training_bytes(self.shape, self.setting)}

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    def suggest(self, limit: float) -> "Forecast | None":
        """The first that surely takes at most `limit` bytes: as precise as there is room for, then rank, then speed."""
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
        """The same run with these settings. `one_by_one`: prompts, in every stage and in the training."""
        past_rank = rank * (self.workload.rounds - 1)
        setting = replace(self.setting, bits=bits, number=2, rank=rank, past_rank=past_rank, checkpoint=checkpoint)
        if not one_by_one:
            return replace(self, setting=setting)
        stages = tuple(replace(stage, together=1) for stage in self.workload.stages)
        return Forecast(self.shape, replace(setting, batch=1), replace(self.workload, stages=stages))

    def __str__(self) -> str:
        """The settings that decide the memory."""
        setting, together = self.setting, max(stage.together for stage in self.workload.stages)
        asked = "1 prompt" if together == 1 else f"{together} prompts"
        kept = "recomputing layers (grad_checkpoint: true)" if setting.checkpoint else "keeping layers"
        return f"{setting.bits}-bit, rank {setting.rank}, batch size {setting.batch}, {kept}, {asked} at once"


def usable_bytes() -> float:
    """What this machine lets a model have: Metal's working set, or else all of the memory there is."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float(mx.device_info().get("max_recommended_working_set_size", memory))


def training_needs(train: Any) -> dict[str, Any]:
    """What the settings of a training, DPO's or PPO's, say of a `Setting`."""
    needs = {"rank": train.lora.rank, "batch": train.batch_size, "checkpoint": train.grad_checkpoint}
    if isinstance(train, PreferenceSettings):
        needs |= {"copies": len(train.loss.reads), "prefills": train.loss.prefills}
    return needs


def forecast(model: str, needs: Mapping[str, Any], workload: Workload = DEFAULT) -> Forecast:
    """What a model's folder, `needs` (fields of `Setting`) and a workload make."""
    shape, bits, number = read_shape(TINY if model == "tiny" else find_config(model))
    number = FLOAT32 if model == "tiny" else number  # `policy.load` casts it
    bits = 8 * number if bits >= 16 else bits
    longest = max(stage.tokens for stage in workload.stages)
    known: dict[str, Any] = {"bits": bits, "number": number, "prompt": shape.image_tokens + PROMPT_WORDS, "answer": longest}
    known |= {"copies": workload.copies, "judge": _judge_bytes(model, shape, workload)}
    setting = Setting(**{**known, **needs})
    return Forecast(shape, replace(setting, past_rank=setting.rank * (workload.rounds - 1)), workload)


def _judge_bytes(model: str, shape: Shape, workload: Workload) -> float:
    """The CLIP that judges and the vectors it keeps; nothing where none is named: that is refused before a run begins."""
    if workload.judge is None or (workload.judge[0] is None and model != "tiny"):
        return 0.0
    name, view = workload.judge
    config = CLIPConfig.from_dict(read_json((TINY_CLIP if name is None else find_config(name)) / "config.json"))
    return clip_bytes(shape, config, shares=view == "pad") + CACHE_GB * 1e9


def in_brief(plan: Forecast) -> dict[str, Any]:
    """The plan in gigabytes, and what to do where it is more than the machine has."""
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
    """The same, with what fits Macs of each size, and how long all of it would take here."""
    fitting = {f"{size} GB Mac": _words(plan.suggest(GPU_SHARE * size * 1e9)) for size in SIZES_OF_MACS}
    rates = rates_for(plan.shape, plan.setting, plan.workload)
    seconds = seconds_of(plan.shape, plan.setting, plan.workload, rates)
    return {
        **in_brief(plan),
        **fitting,
        "gflops_here": {f"{count} tokens at once": _three_digits(rate / 1e9) for count, rate in rates.items()},
        "time_at_most": "; ".join(f"{name} {duration(count)}" for name, count in seconds.items())
        + f" (the language model's part, estimated from matrix products timed here just now; {_not_timed(plan)})",
    }


def for_people(figures: Mapping[str, Any]) -> dict[str, Any]:
    """`in_full` without what only programs want: Macs of every size in one line where all take the same settings."""
    macs = [f"{size} GB Mac" for size in SIZES_OF_MACS]
    shown = {name: value for name, value in figures.items() if name not in (*macs, "gflops_here")}
    fitting = {figures[mac] for mac in macs}
    if len(fitting) > 1:
        return shown | {mac: figures[mac] for mac in macs}
    return shown | {"fits": f"every Mac from {SIZES_OF_MACS[0]} GB up: {fitting.pop()}"}


def _not_timed(plan: Forecast) -> str:
    """What the time leaves out, a few per cent at 7B."""
    judge = "" if plan.workload.judge is None else " and the judging CLIP"
    return f"the vision tower{judge} not counted"


def too_large(plan: Forecast) -> str | None:
    """A sentence with the setting that fits, where this one does not."""
    limit = usable_bytes()
    if MARGIN * plan.peak <= limit:
        return None
    return (
        f"about {plan.peak / 1e9:.1f} GB (give or take 15 %) are needed at the peak and {limit / 1e9:.1f} GB can be used "
        f"here. What fits: {_words(plan.suggest(limit))}."
    )


def warn_if_too_large(model: str, plan: Forecast) -> None:
    """Said before a model is loaded: on a Mac the system kills a process that asks for too much, without a word."""
    sentence = too_large(plan)
    if sentence:
        say(f"warning: {model}: {sentence}")


def tell_of_death(place: str, plan: Forecast) -> None:
    """After an attempt that ended without a word at `place`; with a smaller setting where memory may have been short."""
    words = f"The last attempt died in {place}, without a word: something or somebody killed it."
    if MARGIN * plan.peak >= NEAR * usable_bytes():
        smaller = plan.suggest(min(plan.peak / MARGIN, NEAR * usable_bytes()))
        words += f" Perhaps for want of memory: {plan.peak / 1e9:.1f} GB are needed at the peak, give or take 15 %, and "
        words += f"{usable_bytes() / 1e9:.1f} GB can be used. If it dies again, take less: {_words(smaller)}."
    say(words)


def _words(plan: Forecast | None) -> str:
    return "too small for this model" if plan is None else str(plan)


def _gigabytes(count: float) -> float:
    return _three_digits(count / 1e9)


def _three_digits(number: float) -> float:
    return float(f"{number:.3g}")
