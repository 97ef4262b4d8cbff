"""torch's .bin files without torch: the same tensors as torch's own, and nothing but refusals for what is not a state dict."""

import contextlib
import io
import pickle
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile_pickles import executing, lying, one, sized, state_dict, tensor, text, write_torch_file

from mlx_visalign.convert.io import torch_pickle
from mlx_visalign.convert.io.torch_file import PICKLE_LIMIT, read_torch
from mlx_visalign.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
GOOD = one(tensor())


def assert_same_tensors(path: Path, expected: dict[str, np.ndarray]) -> None:
    entries = read_torch(path)
    assert entries.keys() == expected.keys()
    for name, array in expected.items():
        read = entries[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        assert np.array_equal(read, array), name
        assert not read.flags.writeable or read.size == 0, name


def refusal(path: Path) -> str:
    """What the reader says; it must be one sentence or two that name the file, after little arithmetic."""
    start = time.process_time()
    with pytest.raises(UserError) as raised:
        read_torch(path)
    said = str(raised.value)
    assert time.process_time() - start < 2
    assert said.startswith(str(path)) and said.endswith(".") and "\n" not in said and len(said) < 400
    return said


def test_what_torch_wrote_is_read():
    with np.load(GOLDEN / "torch_file.npz") as arrays:
        expected = {name: arrays[name] for name in arrays.files if name != "versions"}
    assert_same_tensors(GOLDEN / "torch_file.bin", expected)


def test_types_are_named_as_in_safetensors():
    entries = read_torch(GOLDEN / "torch_file.bin")
    dtypes = [entries[name].tensor.dtype for name in ("double", "single", "half", "brain", "integers", "truths")]
    assert dtypes == ["F64", "F32", "F16", "BF16", "I64", "BOOL"]


@pytest.mark.reference
def test_what_torch_writes_now_is_read(tmp_path):
    import torch
    from golden.make_torch_file import arrays
    from golden.make_torch_file import state_dict as torchs_own

    tensors = torchs_own()
    torch.save(tensors, tmp_path / "now.bin")
    loaded = torch.load(tmp_path / "now.bin", weights_only=True)
    assert_same_tensors(tmp_path / "now.bin", arrays(loaded))
    torch.save(dict(tensors), tmp_path / "plain dict.bin")
    assert_same_tensors(tmp_path / "plain dict.bin", arrays(loaded))


@pytest.mark.reference
def test_a_whole_module_and_torchs_older_format_are_refused(tmp_path):
    import torch

    layer, path = torch.nn.Linear(2, 2), tmp_path / "layer.bin"
    torch.save(layer, path)
    assert "torch.nn.modules.linear.Linear" in refusal(path)
    torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=False)
    assert "newer" in refusal(path)


@pytest.mark.parametrize("attack", executing(Path()))
def test_nothing_is_executed(tmp_path, attack):
    marker = tmp_path / "executed"
    pickled = executing(marker)[attack]
    write_torch_file(tmp_path / "model.bin", pickled)
    refusal(tmp_path / "model.bin")
    assert not marker.exists()
    with contextlib.suppress(Exception):  # the attack is a real one
        _Victim(io.BytesIO(pickled)).load()
    assert wait_for(marker)


class _Victim(pickle.Unpickler):
    def persistent_load(self, reference):
        return reference

    def find_class(self, module, name):
        return tuple if module.startswith("torch") else super().find_class(module, name)


def wait_for(marker: Path) -> bool:
    """A started process may take a moment."""
    for _ in range(1000):
        if marker.exists():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("lie", lying())
def test_what_is_no_state_dict_is_refused(tmp_path, lie):
    write_torch_file(tmp_path / "model.bin", lying()[lie])
    refusal(tmp_path / "model.bin")


def test_the_lies_are_told_about_a_file_that_is_read(tmp_path):
    path = tmp_path / "model.bin"
    write_torch_file(path, GOOD, {"0": np.arange(4, dtype=np.float32).tobytes()})
    assert read_torch(path)["a"].read().tolist() == [0, 1, 2, 3]
    write_torch_file(path, one(sized((2, 2), (1, 2))), {"0": np.arange(4, dtype=np.float32).tobytes()})
    assert read_torch(path)["a"].read().tolist() == [[0, 2], [1, 3]]


def test_a_memo_index_of_four_billion_costs_nothing(tmp_path):
    write_torch_file(tmp_path / "model.bin", state_dict(text("a") + b"r\xff\xff\xff\xff", tensor()))
    assert list(read_torch(tmp_path / "model.bin")) == ["a"]


@pytest.fixture
def steps(monkeypatch):
    """The opcodes that are looked at."""
    seen, step = [], torch_pickle._Machine.step

    def counted(machine, opcode, argument):
        seen.append(opcode)
        step(machine, opcode, argument)

    monkeypatch.setattr(torch_pickle._Machine, "step", counted)
    return seen


MUCH = {
    "deep": (b"\x80\x02)" + b"\x85" * 1_000_000 + b".", 5, "2 levels"),
    "a deep key": (state_dict(b")" + b"\x85" * 1_000_000, tensor()), 8, "2 levels"),
    "wide": (b"\x80\x02(" + b"N" * 65 + b"t.", 70, "64 items"),
    "doubling": (one(b")q\x00" + b"h\x00h\x00\x86q\x00" * 100_000), 20, "2 levels"),
    "long": (b"\x80\x02" + b"N" * 1_500_000 + b".", torch_pickle.MOST_OPCODES, "300000 opcodes"),
    "marks": (b"\x80\x02" + b"(" * 1_500_000 + b".", torch_pickle.MOST_OPCODES, "300000 opcodes"),
}


@pytest.mark.parametrize("name", MUCH)
def test_what_no_model_has_is_refused_while_it_is_small(tmp_path, steps, name):
    """Counted in opcodes: a busy machine must not change the verdict."""
    pickled, most, word = MUCH[name]
    write_torch_file(tmp_path / "model.bin", pickled)
    assert word in refusal(tmp_path / "model.bin") and len(steps) <= most


def test_a_state_dict_of_four_thousand_tensors_is_read(tmp_path, steps):
    items = [part for index in range(4000) for part in (text(f"layer.{index}.weight"), tensor())]
    write_torch_file(tmp_path / "model.bin", state_dict(*items))
    assert len(read_torch(tmp_path / "model.bin")) == 4000 and len(steps) < torch_pickle.MOST_OPCODES


def archive_of(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("/etc/passwd", "unsafe"),
        ("../outside", "unsafe"),
        ("archive/../../outside", "unsafe"),
        ("archive/data/..", "unsafe"),
        ("elsewhere/data/0", "unsafe"),
        ("archive/", "unsafe"),
        ("archive", "unsafe"),
        ("archive/data/0", "unsafe"),  # a second one
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_lead_out_or_come_twice_are_refused(tmp_path, name, word):
    path = tmp_path / "model.bin"
    archive_of(path, ("archive/data.pkl", GOOD), ("archive/data/0", bytes(16)), (name, bytes(16)))
    assert word in refusal(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_compressed_members_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "model.bin"
    archive_of(path, ("archive/data.pkl", GOOD), ("archive/data/0", bytes(10_000_000)), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    assert "compressed" in refusal(path)


def test_a_long_pickle_is_refused(tmp_path):
    write_torch_file(tmp_path / "model.bin", b"N" * (PICKLE_LIMIT + 1))
    assert "bytes" in refusal(tmp_path / "model.bin")


def test_big_endian_and_missing_pickles_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    archive_of(path, ("archive/data.pkl", GOOD), ("archive/data/0", bytes(16)), ("archive/byteorder", b"big"))
    assert "big-endian" in refusal(path)
    archive_of(path, ("archive/constants.pkl", GOOD), ("archive/data/0", bytes(16)))
    assert "data.pkl" in refusal(path)


def central_directory_patched(path: Path, member: str, at: int, value: bytes) -> None:
    """Overwrite bytes of one member's record in the directory at the archive's end, `at` from the record's start."""
    data = bytearray(path.read_bytes())
    record = data.rindex(member.encode()) - 46
    assert data[record : record + 4] == b"PK\x01\x02"
    data[record + at : record + at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "word"),
    [
        (8, struct.pack("<H", 1), "encrypted"),
        (10, struct.pack("<H", zipfile.ZIP_LZMA), "compressed"),
        (20, struct.pack("<LL", 1 << 30, 1 << 30), "not where its directory says"),  # longer than the file
        (24, struct.pack("<L", 64), "compressed"),  # two sizes
        (42, struct.pack("<L", 1 << 30), "executed"),  # begins behind the file's end
        (42, struct.pack("<L", 1), "not where its directory says"),  # begins where no member does
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path, at, value, word):
    path = tmp_path / "model.bin"
    write_torch_file(path, GOOD)
    central_directory_patched(path, "archive/data/0", at, value)
    assert word in refusal(path)


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    write_torch_file(path, GOOD, {"0": bytes(100_000), "1": b"", "2": b""})
    start = zipfile.ZipFile(path).getinfo("archive/data/0").header_offset
    for key in ("1", "2"):
        central_directory_patched(path, f"archive/data/{key}", 42, struct.pack("<L", start))
        central_directory_patched(path, f"archive/data/{key}", 20, struct.pack("<LL", 100_000, 100_000))
    assert "overlap" in refusal(path)


def test_other_formats_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    with tarfile.open(path, "w") as archive:  # torch before 0.1.10 wrote such files
        archive.addfile(tarfile.TarInfo("storages"))
    assert "not a zip" in refusal(path)
    for content in (b"", b"PK\x03\x04", b"<html></html>", pickle.dumps({"a": 1}), bytes(1000), b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        refusal(path)
    refusal(tmp_path)
    refusal(tmp_path / "missing.bin")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole, path = (GOLDEN / "torch_file.bin").read_bytes(), tmp_path / "model.bin"
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        refusal(path)


def test_damaged_files_are_refused_or_stay_within_bounds(tmp_path):
    whole, path, rng = (GOLDEN / "torch_file.bin").read_bytes(), tmp_path / "model.bin", np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            for entry in read_torch(path).values():
                entry.read().sum()
        except UserError:
            refused += 1
    assert 20 < refused < 200  # most bytes are padding and numbers, which may be anything
