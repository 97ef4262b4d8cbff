"""What the memory plan says of LLaVA-1.5-7B and of this machine."""

import pytest
from test_footprint import LLAVA_7B

from mlx_visalign import memory_plan
from mlx_visalign.footprint import Setting
from mlx_visalign.memory_plan import GPU_SHARE, SIZES_OF_MACS, peak_bytes, suggest, too_large, usable_bytes

SETTING = Setting(prompt=640, answer=256)


def fitting(size):
    return suggest(LLAVA_7B, SETTING, GPU_SHARE * size * 1e9)


def test_8_gigabytes_are_too_small_for_7b():
    assert fitting(8) is None


def test_larger_macs_hold_more():
    found = [fitting(size) for size in SIZES_OF_MACS[1:]]
    assert found[0].bits == 4 and found[0].checkpoint and found[-1].bits == 16
    peaks = [peak_bytes(LLAVA_7B, setting) for setting in found]
    assert peaks == sorted(peaks)
    for size, used in zip(SIZES_OF_MACS[1:], peaks, strict=True):
        assert used <= GPU_SHARE * size * 1e9


def test_the_published_model_of_7b_is_near():
    """The 6.3 GB of 4 bits, rank 16, checkpointing at 636 + 120/120 tokens, and 13.6 GB without, were computed by hand."""
    setting = Setting(bits=4, rank=16, prompt=636, answer=120, answers=1, checkpoint=True)
    assert peak_bytes(LLAVA_7B, setting) / 1e9 == pytest.approx(6.3, rel=0.15)


def test_what_does_not_fit_is_said_with_what_does(monkeypatch):
    monkeypatch.setattr(memory_plan, "usable_bytes", lambda: 11.4e9)
    told = too_large(LLAVA_7B, SETTING)
    assert "11.4 GB can be used" in told and "4-bit" in told
    monkeypatch.setattr(memory_plan, "usable_bytes", lambda: 5e9)
    assert "too small" in too_large(LLAVA_7B, SETTING)
    monkeypatch.setattr(memory_plan, "usable_bytes", lambda: 200e9)
    assert too_large(LLAVA_7B, SETTING) is None


def test_a_run_warns_before_it_loads(monkeypatch, capsys):
    monkeypatch.setattr(memory_plan, "usable_bytes", lambda: 1e6)
    memory_plan.warn_if_too_large("tiny", {"rank": 16})
    assert "needed at the peak" in capsys.readouterr().err


def test_this_machine_has_memory():
    assert 1e9 < usable_bytes() < 1e13


def test_the_report_for_the_doctor():
    told = memory_plan.memory_report("tiny")
    assert set(told) >= {"memory_gb", "checkpoints_gb", "8 GB Mac", "64 GB Mac", "seconds_a_pair"}
    assert "too_large" not in told
