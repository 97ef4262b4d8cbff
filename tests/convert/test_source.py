"""Folders of weights in every arrangement, and the tensor or the file that is named when one does not add up."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_visalign.convert.io.source import open_source
from mlx_visalign.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_file.bin"
A, B, C = (np.full((2, 3), value, np.float32) for value in range(3))
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of two shards with their index."""
    save_file({"a": A, "b": B}, tmp_path / FIRST, metadata={"format": "pt"})
    save_file({"c": C}, tmp_path / SECOND, metadata={"format": "pt"})
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map}))


def assert_abc(path: Path) -> None:
    source = open_source(path)
    assert source.tensors.keys() == {"a", "b", "c"}
    assert source.tensors["c"].shape == (2, 3)
    assert source.metadata == {"format": "pt"}
    for name, array in zip("abc", (A, B, C), strict=True):
        np.testing.assert_array_equal(source.read(name), array)


def test_shards_with_and_without_their_index(shards):
    assert_abc(shards)
    (shards / INDEX).unlink()
    assert_abc(shards)


def test_one_file_by_its_own_name_or_by_its_folder(tmp_path):
    save_file({"a": A, "b": B, "c": C}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_abc(tmp_path)
    assert_abc(tmp_path / "model.safetensors")
    assert open_source(tmp_path / "model.safetensors").folder == tmp_path


def test_files_of_any_name_that_an_index_does_not_name(tmp_path):
    save_file({"a": A, "b": B}, tmp_path / "weights.00.safetensors", metadata={"format": "pt"})
    save_file({"c": C}, tmp_path / "weights.01.safetensors", metadata={"format": "pt"})
    (tmp_path / "._weights.00.safetensors").write_bytes(b"what a Mac leaves on other file systems")
    assert_abc(tmp_path)


def test_torch_files_whole_and_in_shards(tmp_path):
    shutil.copy(GOLDEN, tmp_path / "pytorch_model.bin")
    whole = open_source(tmp_path)
    assert whole.read("single").shape == (4, 6) and whole.metadata == {}
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00001.bin")
    assert open_source(tmp_path).tensors == whole.tensors
    weight_map = dict.fromkeys(whole.tensors, "pytorch_model-00001-of-00001.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_source(tmp_path).tensors == whole.tensors
    assert open_source(GOLDEN).tensors == whole.tensors


def test_safetensors_go_before_torch_files(shards):
    (shards / "pytorch_model.bin").write_bytes(b"never opened")
    assert_abc(shards)


def test_links_into_the_hubs_cache_are_followed(shards, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate((FIRST, SECOND, INDEX)):
        (shards / name).rename(blobs / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / name)
    assert_abc(snapshot)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(shards, index):
    (shards / FIRST).unlink()
    if not index:
        (shards / INDEX).unlink()
    with pytest.raises(UserError, match=f"{FIRST} is missing"):
        open_source(shards)


def test_a_link_that_leads_nowhere_is_a_missing_shard(shards):
    (shards / FIRST).unlink()
    os.symlink("../../blobs/gone", shards / FIRST)
    (shards / INDEX).unlink()
    with pytest.raises(UserError, match=f"{FIRST} is missing"):
        open_source(shards)


@pytest.mark.parametrize("index", [True, False])
def test_a_tensor_in_two_shards_is_named(shards, index):
    save_file({"b": B, "c": C}, shards / SECOND)
    if not index:
        (shards / INDEX).unlink()
    with pytest.raises(UserError, match=f"b is in two files, {FIRST} and .*{SECOND}"):
        open_source(shards)


@pytest.mark.parametrize("weight_map", [{"d": SECOND}, {"b": SECOND}])
def test_a_tensor_that_is_not_where_the_index_says_is_named(shards, weight_map):
    write_index(shards, {"a": FIRST, "b": FIRST, "c": SECOND} | weight_map)
    with pytest.raises(UserError, match=f"{SECOND} holds {next(iter(weight_map))}, but it does not"):
        open_source(shards)


def test_a_tensor_that_the_index_does_not_name_is_named(shards):
    write_index(shards, {"a": FIRST, "c": SECOND})
    with pytest.raises(UserError, match=f"{FIRST} holds b, which {INDEX} does not name"):
        open_source(shards)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\0b"])
def test_an_index_does_not_lead_out_of_its_folder(shards, name):
    save_file({"a": A}, shards.parent / "model.safetensors")
    write_index(shards, {"a": name})
    with pytest.raises(UserError, match=r"own folder|is missing"):
        open_source(shards)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(shards, content):
    (shards / INDEX).write_text(content)
    with pytest.raises(UserError, match=INDEX):
        open_source(shards)


def test_no_weights_and_no_folder_are_said(tmp_path):
    with pytest.raises(UserError, match="has no weights"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_source(tmp_path / "missing")


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")  # to open it would wait for ever
    with pytest.raises(UserError):
        open_source(tmp_path)


def test_a_file_that_shrank_since_is_said(tmp_path):
    save_file({"a": A}, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="can no longer be read"):
        source.read("a")
