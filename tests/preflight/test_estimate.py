"""What the plan says of LLaVA-1.5-7B and of this machine, before anything is loaded."""

import json
from collections import defaultdict
from dataclasses import replace

import pytest
from measured_peaks import LLAVA_7B
from weightless import CLIP_L14, LLAVA

from mlx_visalign import methods
from mlx_visalign.data.records import Prompt
from mlx_visalign.preflight import estimate as memory_plan
from mlx_visalign.preflight.estimate import (
    DEFAULT,
    GPU_SHARE,
    SIZES_OF_MACS,
    Forecast,
    forecast,
    in_full,
    report_previous_kill,
    too_large,
    usable_bytes,
    warn_if_too_large,
)
from mlx_visalign.preflight.memory import Setting, clip_bytes
from mlx_visalign.preflight.throughput import measured_rate, seconds_of
from mlx_visalign.preflight.workload import Answering, Workload, training_flops
from mlx_visalign.runs.recipe import make_plan
from mlx_visalign.training.dpo import PreferenceSettings

PLAN = Forecast(LLAVA_7B, Setting(prompt=640, answer=256, rank=64), DEFAULT)
ASKED = [Prompt(str(i), f"{i}.png", "Describe this image.", "describe") for i in range(100)]


def settings_of(method, preset="laptop", **settings):
    values = {"model": "tiny", "images": ".", "settings": settings}
    return make_plan(methods.recipe_of(method), methods.find, preset, values).settings


def usable(monkeypatch, gigabytes):
    monkeypatch.setattr(memory_plan, "usable_bytes", lambda: gigabytes * 1e9)


# -- what fits ------------------------------------------------------------------------------------------------------------


def test_8_gigabytes_are_too_small_for_7b():
    assert PLAN.suggest(GPU_SHARE * 8e9) is None


def test_larger_macs_hold_more():
    found = [PLAN.suggest(GPU_SHARE * size * 1e9) for size in SIZES_OF_MACS[1:]]
    assert found[0].setting.bits == 4 and found[0].setting.checkpoint and found[-1].setting.bits == 16
    for size, plan in zip(SIZES_OF_MACS[1:], found, strict=True):
        assert plan.peak <= GPU_SHARE * size * 1e9 and plan.setting.rank <= 64
    assert [plan.peak for plan in found] == sorted(plan.peak for plan in found)


def test_one_prompt_at_a_time_where_several_do_not_fit():
    many = replace(PLAN, workload=Workload((replace(DEFAULT.stages[0], together=100),), trained=1))
    found = many.suggest(GPU_SHARE * 16e9)
    assert found.workload.stages[0].together == 1 and "1 prompt at once" in str(found)


def test_rounds_add_to_the_adapter():
    three = replace(PLAN, workload=replace(DEFAULT, rounds=3)).suggest(1e12)
    assert three.setting.past_rank == 2 * 64


def test_the_published_model_of_7b_is_near():
    """The 6.3 GB of 4 bits, rank 16, checkpointing at 636 + 120/120 tokens were computed by hand."""
    setting = Setting(bits=4, rank=16, prompt=636, answer=120, checkpoint=True)
    alone = Workload((Answering("answering", 1, 120, together=1, tokens=120, read=2),), trained=1)
    assert Forecast(LLAVA_7B, setting, alone).peak / 1e9 == pytest.approx(6.3, rel=0.15)


# -- what is said ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_with_what_does(monkeypatch):
    usable(monkeypatch, 11.4)
    assert "only 11.4 GB are usable" in too_large(PLAN) and "8-bit, rank 16" in too_large(PLAN)
    usable(monkeypatch, 5)
    assert "this model is too large" in too_large(PLAN)
    usable(monkeypatch, 200)
    assert too_large(PLAN) is None


def test_a_run_warns_before_it_loads(monkeypatch, capsys):
    usable(monkeypatch, 0.001)
    warn_if_too_large("tiny", forecast("tiny", {"rank": 16}))
    assert "peak memory is about" in capsys.readouterr().err


def test_a_kill_is_reported_and_memory_blamed_only_where_it_was_short(monkeypatch, capsys):
    usable(monkeypatch, 200)
    report_previous_kill("the training", PLAN)
    assert "killed during the training" in (said := capsys.readouterr().err) and "memory" not in said
    usable(monkeypatch, PLAN.peak / 1e9)
    report_previous_kill("the stage trees", PLAN)
    said = capsys.readouterr().err
    assert (
        "killed during the stage trees" in said
        and "use less. Settings that fit: 8-bit, rank 64, batch size 1, recomputing" in said
    )


def test_this_machine_has_memory():
    assert 1e9 < usable_bytes() < 1e13


# -- whole runs, from a folder that holds a config and nothing else -------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """LLaVA-1.5-7B and the CLIP it sees through."""
    llava, clip = (tmp_path_factory.mktemp(name) for name in ("llava", "clip"))
    (llava / "config.json").write_text(json.dumps({**LLAVA, "image_token_index": 32000, "dtype": "float16"}))
    towers = {"text_config": vars(CLIP_L14.text), "vision_config": vars(CLIP_L14.vision)}
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": 768, **towers}))
    return str(llava), str(clip)


@pytest.mark.parametrize("method", methods.names())
def test_every_method_at_7b(folders, method, monkeypatch):
    monkeypatch.setattr(memory_plan, "rates_for", lambda *_: defaultdict(lambda: 1e12))
    model, clip = folders
    settings = settings_of(method)
    scores = hasattr(settings, "clip")
    settings = replace(settings, clip=clip) if scores else settings
    stages = [stage.title for stage in settings.workload(ASKED).stages]
    plan = forecast(model, memory_plan.training_needs(settings.train), settings.workload(ASKED))
    told = in_full(plan)
    assert list(told["memory_gb"]) == ["weights", *stages, "training", "usable here"] and told["peak"] in plan.peaks
    assert told["memory_gb"]["weights"] == pytest.approx(14.1, abs=0.1)  # what the files of LLaVA-1.5-7B take
    assert told["8 GB Mac"] == "too small for this model" and "4-bit" in told["16 GB Mac"] and "16-bit" in told["64 GB Mac"]
    assert all(name in told["time_at_most"] for name in (*stages, "training", "the vision tower"))
    assert ("scoring CLIP" in told["time_at_most"]) == scores


def test_mdpo_reads_every_prompt_twice_and_three_answers(folders):
    plans = []
    for loss_type in ("sigmoid", "mdpo"):
        settings = replace(settings_of("seva"), train=PreferenceSettings(loss_type=loss_type))
        plans.append(forecast(folders[0], memory_plan.training_needs(settings.train), settings.workload(ASKED)))
    plain, twice = plans
    assert [stage.title for stage in twice.workload.stages] == ["answering", "scoring the reference"]
    assert (twice.setting.copies, twice.setting.prefills) == (3, 2)
    flops = [training_flops(plan.shape, plan.setting) for plan in plans]
    assert 1.6 < flops[1] / flops[0] < 2
    assert twice.peaks["training"] > plain.peaks["training"]


def test_a_scorer_of_its_own_costs_its_tower(folders):
    """openai/clip-vit-large-patch14-336 has 428 M weights, 291 M of them in the 23 blocks that LLaVA has too."""
    model, clip = folders
    shared, own = (
        forecast(model, {}, settings_of("csr", clip=clip, view=view).workload(ASKED)).setting.scorer for view in ("pad", "crop")
    )
    assert own - shared == pytest.approx(4 * 290e6, rel=0.01)
    assert clip_bytes(LLAVA_7B, CLIP_L14, shares=False) == pytest.approx(4 * 428e6, rel=0.01)
    assert forecast(model, {}, settings_of("csr").workload(ASKED)).setting.scorer == 0  # none is named yet


def test_a_trees_width_counts(folders):
    peaks = [
        forecast(folders[0], {}, settings_of("csr", num_beam_groups=groups).workload(ASKED)).peaks["answering and scoring"]
        for groups in (2, 5)
    ]
    # Keys and values: 4 open nodes of 5 streams each or 3 of 2, of 261 tokens at most, in 32 layers and once more in the one
    # at work; and the 191 that a node more consists of. Each is 2 x 4096 numbers of two bytes. And a stream's logits, twice.
    more = (20 - 6) * 261 * 33 + 191 * 32
    words = (20 - 6) * 2 * 32064
    assert peaks[1] - peaks[0] == pytest.approx(more * 2 * 4096 * 2 + words * 4, rel=0.001)


# -- time -----------------------------------------------------------------------------------------------------------------


def test_time_follows_the_work():
    rates = {PLAN.setting.prompt: 1e12, 8: 1e11}
    once = seconds_of(LLAVA_7B, PLAN.setting, DEFAULT, rates)
    assert once["training"] == pytest.approx(30, rel=0.1)  # a pair of 640 + 256/256 tokens, at 1 TFLOP/s
    more = replace(DEFAULT, trained=7, stages=(replace(DEFAULT.stages[0], total=2, sampled=512),))
    twice = seconds_of(LLAVA_7B, PLAN.setting, more, rates)
    assert twice["training"] == pytest.approx(7 * once["training"])
    assert twice["answering"] == pytest.approx(2 * once["answering"])


@pytest.mark.parametrize("bits", [32, 4])
def test_the_rate_is_measured(bits):
    plan = forecast("tiny", {"bits": bits})
    assert 1e6 < measured_rate(plan.shape, plan.setting, 8) < 1e16
