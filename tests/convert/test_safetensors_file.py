"""safetensors headers, judged as safetensors' own reader judges them, and files written one tensor at a time."""

import json
import resource
import subprocess
import sys
import weakref
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from mlx_visalign.convert.io.safetensors_file import read_header, write_safetensors
from mlx_visalign.convert.io.tensors import Tensor
from mlx_visalign.utils.errors import UserError

ARRAYS = {
    "half": np.arange(3, dtype=np.float16),
    "single": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "truths": np.array([True, False, True]),
    "brain": np.array([0x3F80, 0xC000], np.uint16),
}
CODES = {"half": "F16", "single": "F32", "scalar": "I64", "empty": "F32", "truths": "BOOL", "brain": "BF16"}
TENSORS = [Tensor(name, CODES[name], array.shape) for name, array in ARRAYS.items()]


def write(path: Path) -> None:
    write_safetensors(path, TENSORS, lambda tensor: ARRAYS[tensor.name], {"format": "mlx"}, lambda _: None)


def test_others_read_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    arrays, metadata = mx.load(str(path), return_metadata=True)
    assert metadata == {"format": "mlx"}
    assert arrays["brain"].dtype == mx.bfloat16 and arrays["brain"].tolist() == [1.0, -2.0]
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name]["dtype"], tuple(found[name]["shape"])) == (CODES[name], array.shape)
        assert found[name]["data"] == array.tobytes()


def test_we_read_what_others_write(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    entries, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(entries[name].read(), array)
    with pytest.raises(ValueError, match="read-only"):
        entries["single"].read()[0] = 1


def test_our_own_come_back_aligned_and_in_the_order_given(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    entries, _ = read_header(path)
    assert list(entries) == ["scalar", "single", "empty", "half", "brain", "truths"]
    for name, array in ARRAYS.items():
        read = entries[name].read()
        assert entries[name].offset % array.itemsize == 0
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_progress_is_told_in_bytes(tmp_path):
    written: list[int] = []
    write_safetensors(tmp_path / "a.safetensors", TENSORS, lambda tensor: ARRAYS[tensor.name], {}, written.append)
    assert sum(written) == sum(array.nbytes for array in ARRAYS.values())


def test_strided_arrays_are_written_in_rows(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    write_safetensors(tmp_path / "a.safetensors", [Tensor("a", "F32", (4, 2, 3))], lambda _: array, {}, lambda _: None)
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["a"], array)


def test_one_array_at_a_time_is_alive(tmp_path):
    alive: list[weakref.ref] = []

    def produce(tensor: Tensor) -> np.ndarray:
        assert not any(reference() is not None for reference in alive)
        array = np.zeros(tensor.shape, np.float32)
        alive.append(weakref.ref(array))
        return array

    many = [Tensor(str(index), "F32", (4, 4)) for index in range(5)]
    write_safetensors(tmp_path / "a.safetensors", many, produce, {}, lambda _: None)
    assert len(alive) == 5


@pytest.mark.parametrize("array", [np.zeros(2, np.float32), np.zeros(3, np.float16), np.zeros(3, np.float64)])
def test_an_array_that_is_not_what_was_promised_is_refused(tmp_path, array):
    with pytest.raises(ValueError, match="expected an array"):
        write_safetensors(tmp_path / "a.safetensors", [Tensor("a", "F32", (3,))], lambda _: array, {}, lambda _: None)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_stop_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    before = path.read_bytes()

    def interrupted(tensor: Tensor) -> np.ndarray:
        if tensor.name == "brain":
            raise KeyboardInterrupt
        return np.ones_like(ARRAYS[tensor.name])

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, TENSORS, interrupted, {}, lambda _: None)
    assert path.read_bytes() == before


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    big = [Tensor(name, "F32", (50_000,)) for name in "abc"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a\.safetensors could not be written"):
            write_safetensors(path, big, lambda _: np.zeros(50_000, np.float32), {}, lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def a_file(header: object, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(start: int, end: int, shape: list, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WHOLE = {"a": tensor(0, 16, [16])}
TWICE = b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}}'
MALFORMED = {
    "overlap": a_file({"a": tensor(0, 10, [10]), "b": tensor(8, 16, [8])}),
    "hole": a_file({"a": tensor(0, 4, [4]), "b": tensor(8, 16, [8])}),
    "hole at the start": a_file({"a": tensor(8, 16, [8])}),
    "trailing bytes": a_file({"a": tensor(0, 8, [8])}),
    "negative dimensions": a_file({"a": tensor(0, 16, [-4, -4])}),
    "duplicate key": a_file(TWICE),
    "header of 200 MB": (200_000_000).to_bytes(8, "little") + b"{}",
    "header of 9 EB": (1 << 63).to_bytes(8, "little") + b"{}",
    "bad UTF-8": a_file(json.dumps(WHOLE).encode().replace(b'"a"', b'"\xff"')),
    "lone surrogate": a_file(json.dumps(WHOLE).encode().replace(b'"a"', b'"\\ud800"')),
    "past the end": a_file({"a": tensor(0, 32, [32])}),
    "end before start": a_file({"a": tensor(16, 0, [16])}),
    "too few bytes for the shape": a_file({"a": tensor(0, 16, [17])}),
    "too many bytes for the shape": a_file({"a": tensor(0, 16, [15])}),
    "shape that overflows": a_file({"a": tensor(0, 16, [1 << 63, 2])}),
    "unknown type": a_file({"a": tensor(0, 16, [16], "Q9")}),
    "metadata that is no text": a_file({"__metadata__": {"epoch": 1}, **WHOLE}),
    "missing shape": a_file({"a": {"dtype": "U8", "data_offsets": [0, 16]}}),
    "shape of fractions": a_file({"a": tensor(0, 16, [16.0])}),
    "no object": a_file([], b""),
    "not JSON": a_file(b"{a}"),
    "more after the header": a_file(json.dumps(WHOLE).encode() + b"{}"),
    "very deep": a_file(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "truncated data": a_file(WHOLE)[:-3],
    "truncated header": a_file(WHOLE)[:20],
    "truncated length": b"\x01\0\0",
    "nothing": b"",
    "zeros": bytes(64),
}
# Files that the format's description forbids or that no weight needs, but that safetensors' reader lets pass.
FORBIDDEN = {
    "does not begin with a brace": a_file(b" " + json.dumps(WHOLE).encode()),
    "one tensor described twice": a_file(
        b'{"a":' + json.dumps(tensor(0, 16, [16])).encode() + b"," + json.dumps(WHOLE).encode()[1:]
    ),
    "seventy dimensions": a_file({"a": tensor(0, 1, [1] * 70)}, b"x"),
    "empty beyond all measure": a_file({"a": tensor(0, 0, [0, 1 << 62, 1 << 62])}, b""),
    "a type of half a byte": a_file({"a": tensor(0, 16, [32], "F4")}),
}


def safetensors_accepts(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="numpy"):
            return True
    except safetensors.SafetensorError:
        return False


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_as_safetensors_refuses_them(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    path.write_bytes(MALFORMED[kind])
    assert not safetensors_accepts(path)
    with pytest.raises(UserError, match=r"a\.safetensors is not a complete safetensors file .*\)\. Download"):
        read_header(path)


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_we_refuse_a_little_more(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    path.write_bytes(FORBIDDEN[kind])
    assert safetensors_accepts(path)
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read_header(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match="is not a complete"):
            read_header(path)


def test_verdicts_on_mutants_are_those_of_safetensors(tmp_path):
    """Where it accepts, the tensors are the same; where only we refuse, it is for what FORBIDDEN lists."""
    path, rng, accepted = tmp_path / "a.safetensors", np.random.default_rng(0), 0
    write(path)
    whole = path.read_bytes()
    for _ in range(800):
        mutant = mutated(whole, rng)
        path.write_bytes(mutant)
        try:
            entries, _ = read_header(path)
        except UserError as error:
            strict = ("duplicate name", "brace", "has the type", "no weight has")
            assert not safetensors_accepts(path) or any(reason in str(error) for reason in strict), mutant
            continue
        accepted += 1
        theirs = {name: bytes(about["data"]) for name, about in safetensors.deserialize(mutant)}
        assert {name: entry.read().tobytes() for name, entry in entries.items()} == theirs
    assert 80 < accepted < 400


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A byte of the header changed, put in or taken out, the file cut or grown, or one number in a header in another order."""
    data, header = bytearray(whole), 8 + int.from_bytes(whole[:8], "little")
    position = int(rng.integers(0, header))
    match int(rng.integers(5)):
        case 0:
            data[position] = rng.integers(256)
        case 1:
            data[position:position] = rng.choice(list(b'0123456789,:[]{}" ')).tobytes()[:1]
        case 2:
            del data[position]
        case 3:
            data = data[: rng.integers(len(data))] if rng.integers(2) else data + bytes(int(rng.integers(1, 9)))
        case _:
            tensors = list(json.loads(whole[8:header]).items())
            about = tensors[rng.integers(len(tensors))][1]
            numbers = about.get("data_offsets" if rng.integers(2) else "shape") or [0]
            numbers[rng.integers(len(numbers))] += int(rng.choice([-1, 0, 0, 0, 1, 8]))
            return a_file(dict(tensors[index] for index in rng.permutation(len(tensors))), whole[header:])
    return bytes(data)


MEASURED = """
import sys
from pathlib import Path
from mlx_visalign.convert.io.safetensors_file import write_safetensors
from mlx_visalign.convert.io.source import open_source
from mlx_visalign.convert.io.tensors import Tensor, cast

folder = Path(sys.argv[1])
source = open_source(folder)
halves = [Tensor(tensor.name, "F16", tensor.shape) for tensor in source.tensors.values()]
produce = lambda tensor: cast(source.read(tensor.name), "BF16", "F16")[0]
write_safetensors(folder / "out.safetensors", halves, produce, {}, lambda _: None)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_conversion_holds_two_tensors_at_most(tmp_path):
    size, count = 8 << 20, 24
    header = {str(index): tensor(index * size, (index + 1) * size, [size // 2], "BF16") for index in range(count)}
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(a_file(header, b""))
        file.truncate(file.tell() + count * size)  # zeros that take no room
    found = subprocess.run([sys.executable, "-c", MEASURED, tmp_path], capture_output=True, text=True, check=True)
    assert int(found.stdout) * 1024 < 2 * size + (150 << 20) < count * size
