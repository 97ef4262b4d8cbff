"""A checkpoint is whole or not there, and a spoilt one costs no more than the way back to the one before."""

import json
import resource
import shutil
import signal

import mlx.core as mx
import pytest

from mlx_visalign.training.checkpoint import load_checkpoint, save_checkpoint
from mlx_visalign.utils.errors import UserError

SETTINGS = {"beta": 0.1}


def save(folder, step, size=4):
    trees = {"lora": {"layers": [{}, {"a": mx.full((size,), float(step))}]}, "lora.optimizer": {"step": mx.array(step)}}
    save_checkpoint(folder, step, trees, {"row": step * 10}, SETTINGS)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert steps(tmp_path) == [10, 15]
    checkpoint = load_checkpoint(tmp_path, SETTINGS)
    assert (checkpoint.step, checkpoint.source) == (15, {"row": 150})
    assert checkpoint.arrays["lora"]["layers.1.a"].tolist() == [15] * 4
    assert checkpoint.arrays["lora.optimizer"]["step"].item() == 15


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path):
    save(tmp_path, 5)
    checkpoint = load_checkpoint(tmp_path, SETTINGS)
    (tmp_path / "step-0000005/lora.safetensors").write_bytes(b"")
    assert checkpoint.arrays["lora"]["layers.1.a"].tolist() == [5] * 4


def test_an_empty_folder_has_none(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere", SETTINGS) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("file", ["lora.safetensors", "lora.optimizer.safetensors"])
def test_damaged_arrays_send_back_to_the_checkpoint_before(tmp_path, damage, file, capsys):
    save(tmp_path, 5)
    save(tmp_path, 10)
    damage(tmp_path / "step-0000010" / file)
    assert load_checkpoint(tmp_path, SETTINGS).step == 5
    assert "step-0000010 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_damaged_state_sends_back_too(tmp_path, text):
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "step-0000010/state.json").write_text(text)
    assert load_checkpoint(tmp_path, SETTINGS).step == 5


@pytest.mark.parametrize("name", ["step", "source", "settings", "digests", "digest"])
@pytest.mark.parametrize("value", [None, "5", [1], {}, 3])
def test_a_state_with_another_value_sends_back_too(tmp_path, name, value):
    save(tmp_path, 5)
    save(tmp_path, 10)
    file = tmp_path / "step-0000010/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    assert load_checkpoint(tmp_path, SETTINGS).step == 5


def test_a_damaged_checkpoint_never_counts_as_one_of_the_two(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    shutil.rmtree(tmp_path / "step-0000100")
    (tmp_path / "step-0000100").mkdir()
    save(tmp_path, 11)
    assert steps(tmp_path) == [10, 11]
    save(tmp_path, 100)
    assert load_checkpoint(tmp_path, SETTINGS).step == 100


def test_a_kill_in_the_middle_of_a_save_changes_nothing(tmp_path):
    save(tmp_path, 5)
    unfinished = tmp_path / ".unfinished-0123456789abcdef-step-0000010"
    shutil.copytree(tmp_path / "step-0000005", unfinished)
    cut(unfinished / "lora.safetensors")
    assert load_checkpoint(tmp_path, SETTINGS).step == 5
    save(tmp_path, 10)
    assert steps(tmp_path) == [5, 10] and not unfinished.exists()


def test_a_full_disk_is_told_and_leaves_the_last_one_readable(tmp_path, monkeypatch):
    save(tmp_path, 5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step-0000010/lora.safetensors could not be written.*make room"):
            save(tmp_path, 10, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert load_checkpoint(tmp_path, SETTINGS).step == 5
    save(tmp_path, 10, size=10_000)
    assert load_checkpoint(tmp_path, SETTINGS).step == 10


def test_other_settings_are_refused(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(UserError, match=r"beta is 0\.5 now, but .*step-0000005/state\.json was written with 0\.1"):
        load_checkpoint(tmp_path, {"beta": 0.5})
