"""`visalign convert`: instant plans, one sentence for every mistake, and never half a folder."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hf_layouts import write_hf
from random_llava import CONFIG

from mlx_visalign.cli import main as cli
from mlx_visalign.convert.cli import NAMES, main
from mlx_visalign.convert.io import folder as folders
from mlx_visalign.convert.io.folder import new_folder, split
from mlx_visalign.convert.io.source import open_source
from mlx_visalign.convert.io.tensors import Tensor
from mlx_visalign.convert.layouts.llava_config import complete
from mlx_visalign.convert.steps import to_mlx
from mlx_visalign.models import families

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from mlx_visalign.convert.cli import main; sys.exit(main({arguments!r}))"

# The peak of a process itself, in bytes: Linux' ru_maxrss begins with that of the process it was forked from.
PEAK = """
import atexit, re, resource, sys
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
atexit.register(lambda: print(peak()))
"""


@pytest.fixture
def source(tmp_path):
    return write_hf(tmp_path / "hf")


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def llava(source: Path, output: Path, *arguments: str) -> list[str]:
    return ["llava", "--hf-path", str(source), "--mlx-path", str(output), *arguments]


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_converter_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["convert", name, "--help"])
    assert f"visalign convert {name} --" in capsys.readouterr().out.partition("examples:")[2]


def test_help_lists_the_converters_without_importing_them(capsys):
    code = f"{MAIN.format(arguments=['--help'])}"
    found = python(f"import sys, atexit; atexit.register(lambda: print(sorted(sys.modules)))\n{code}").stdout
    assert all(f"\n    {name}" in found for name in NAMES)
    assert "'mlx_visalign.convert.cli'" in found and "'mlx.core'" not in found and "'numpy'" not in found


def test_a_plan_is_instant_and_complete(tmp_path, source):
    """From headers alone: neither mlx-vlm nor torch is imported, and nothing is written."""
    code = f"""
import sys, time
from mlx_visalign.convert.cli import main
started = time.process_time()
main({llava(source, tmp_path / "mlx", "-q", "--q-group-size", "32", "--dry-run")!r})
assert time.process_time() - started < 2
print([name for name in ("mlx_vlm", "mlx_lm", "transformers", "torch") if name in sys.modules])
"""
    before = sorted(tmp_path.rglob("*"))
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    assert sorted(tmp_path.rglob("*")) == before
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:1] > " "]
    names = [row[0] for row in rows]
    assert names[:6] == ["source", "renames", "dropped", "output", "quantised", "peak"]
    assert "80 tensors, 0.47 MB (float16), layout classic" in done.stdout
    assert "patch_embedding.weight, channels last" in done.stdout


def test_the_planned_size_is_the_size(tmp_path, source, capsys):
    for arguments in ((), ("-q", "--q-group-size", "32"), ("--dtype", "float32")):
        output = tmp_path / f"mlx{len(arguments)}"
        assert main(llava(source, output, *arguments, "--dry-run", "--json")) == 0
        planned = json.loads(capsys.readouterr().out)["output"]
        assert main(llava(source, output, *arguments)) == 0
        capsys.readouterr()
        tensors = open_source(output).tensors.values()
        assert planned.startswith(f"{len(tensors)} tensors, {sum(tensor.nbytes for tensor in tensors) / 1e6:.2f} MB")


def test_three_ways_to_call_it(tmp_path, source):
    """Also in a checkout that is not installed, where `mlx_visalign.convert` is found beside `mlx_visalign`."""
    arguments = llava(source, tmp_path / "mlx", "--dry-run")
    not_installed = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.argv[1:] = {arguments!r}
runpy.run_module("convert", run_name="__main__", alter_sys=True)
"""
    calls = (
        [sys.executable, "-m", "mlx_visalign", "convert", *arguments],
        [sys.executable, "-c", MAIN.format(arguments=arguments)],
        [sys.executable, "-c", not_installed.format(arguments=arguments)],
    )
    found = [subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT).stdout for call in calls]
    assert found[0] == found[1] == found[2] and "layout classic" in found[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llava", "--hf-path", "nowhere"], "nowhere/config.json is missing"),
        (["export", "--mlx-path", "nowhere", "--hf-path", "out"], "nowhere/config.json is missing"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"visalign convert {arguments[0]}: ") and message in said


# -- the output folder ------------------------------------------------------------------------------------------------


def test_an_output_that_is_there_is_not_touched(tmp_path, source, capsys):
    output = tmp_path / "mlx"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    for arguments in ((), ("--dry-run",)):
        assert main(llava(source, output, *arguments)) == 2
        assert "already exists" in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_an_empty_output_is_filled(tmp_path, source):
    (tmp_path / "mlx").mkdir()
    assert main(llava(source, tmp_path / "mlx")) == 0
    assert (tmp_path / "mlx" / "model.safetensors").is_file()


@pytest.mark.parametrize("inside", ["mlx", ".", "deep/er"])
def test_nothing_is_written_into_the_source(source, capsys, inside):
    before = sorted(source.rglob("*"))
    assert main(llava(source, source / inside)) == 2
    assert sorted(source.rglob("*")) == before


def test_missing_folders_above_the_output_are_made(tmp_path, source):
    assert main(llava(source, tmp_path / "a" / "b" / "mlx")) == 0
    assert open_source(tmp_path / "a" / "b" / "mlx").metadata == {"format": "mlx"}


@pytest.mark.parametrize("moment", ["write_weights", "complete_processor", "_verify"])
def test_ctrl_c_leaves_nothing(tmp_path, source, monkeypatch, capsys, moment):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(to_mlx, moment, stop)
    assert main(llava(source, tmp_path / "mlx", "--verify")) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert "Nothing unfinished is left behind" in capsys.readouterr().err


def test_a_kill_leaves_nothing_that_looks_whole_and_the_next_run_is_whole(tmp_path, source):
    code = f"""
from mlx_visalign.convert.steps import to_mlx
import os, signal
to_mlx.complete_processor = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{MAIN.format(arguments=llava(source, tmp_path / "mlx"))}
"""
    assert python(code).returncode == -signal.SIGKILL
    unfinished, _ = sorted(path.name for path in tmp_path.iterdir())
    assert re.fullmatch(r"\.unfinished-[0-9a-f]{16}-mlx", unfinished)
    (tmp_path / unfinished / "left over").write_text("")
    assert main(llava(source, tmp_path / "mlx", "--verify")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "mlx"]
    assert not (tmp_path / "mlx" / "left over").exists()


def test_a_full_disk_is_one_sentence(tmp_path, source):
    """As far as a limit on the size of files goes: the system refuses the write in the middle."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
{MAIN.format(arguments=llava(source, tmp_path / "mlx"))}
"""
    done = python(code)
    assert done.returncode == 2
    assert done.stderr.startswith("visalign convert llava: ") and "could not be written" in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_disk_that_is_too_small_is_seen_before(tmp_path, source, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    assert main(llava(source, tmp_path / "mlx")) == 2
    assert "0.00 GB are free" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_one_process_at_a_time_writes_a_folder(tmp_path, source):
    with new_folder(tmp_path / "mlx", source) as unfinished:
        (unfinished / "half").write_text("")
        done = python(MAIN.format(arguments=llava(source, tmp_path / "mlx")))
        assert done.returncode == 2 and "Another process is writing" in done.stderr
        assert (unfinished / "half").exists()
    assert [path.name for path in (tmp_path / "mlx").iterdir()] == ["half"]


# -- shards, checks and memory ----------------------------------------------------------------------------------------


def test_large_models_are_written_in_shards(tmp_path, source, monkeypatch):
    monkeypatch.setattr(folders, "SHARD_BYTES", 100_000)
    assert main(llava(source, tmp_path / "mlx", "--verify")) == 0
    files = sorted(path.name for path in (tmp_path / "mlx").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 3 and all((tmp_path / "mlx" / name).stat().st_size < 110_000 for name in files)
    index = json.loads((tmp_path / "mlx" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in open_source(tmp_path / "mlx").tensors.values())


def test_a_tensor_larger_than_a_shard_gets_its_own(monkeypatch):
    monkeypatch.setattr(folders, "SHARD_BYTES", 10)
    tensors = [Tensor(name, "U8", (size,)) for name, size in (("a", 4), ("b", 6), ("c", 11), ("d", 1))]
    assert [[tensor.name for tensor in shard] for shard in split(tensors)] == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize("arguments", [(), ("-q", "--q-group-size", "32")])
@pytest.mark.parametrize("place", [0.2, 0.7, 0.99])
def test_verify_finds_one_changed_byte(tmp_path, source, monkeypatch, capsys, arguments, place):
    """A quantised weight may move within its step: there the byte that changes is a high one of a scale."""
    write = to_mlx.write_weights

    def damage(folder, *rest):
        write(folder, *rest)
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[int(place * len(data)) | 1] ^= 0x40
        file.write_bytes(data)

    monkeypatch.setattr(to_mlx, "write_weights", damage)
    assert main(llava(source, tmp_path / "mlx", "--verify", *arguments)) == 2
    assert "of the source. Is the disk damaged?" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "mlx").exists()


def test_verify_finds_a_wrong_table(tmp_path, source, monkeypatch, capsys):
    """Two tensors of the same shape, swapped on the way."""
    from mlx_visalign.convert.steps.conversion import Conversion

    make = Conversion.produce
    swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

    def swapped(self, tensor):
        for one, other in swap.items():
            if f"mlp.{one}" in tensor.name:
                return make(self, Tensor(tensor.name.replace(one, other), tensor.dtype, tensor.shape))
        return make(self, tensor)

    monkeypatch.setattr(Conversion, "produce", swapped)
    assert main(llava(source, tmp_path / "mlx", "--verify")) == 2
    assert "gate_proj.weight of the source" in " ".join(capsys.readouterr().err.split())


def test_without_torch_logits_are_not_compared(tmp_path, source, monkeypatch, capsys):
    monkeypatch.setattr("mlx_visalign.convert.steps.parity.find_spec", lambda _: None)
    assert main(llava(source, tmp_path / "mlx", "--verify", "logits", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["logits"] == "not compared with transformers (torch is not installed)"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A quarter of a gigabyte, its largest tensor 31 MB."""
    text = CONFIG["text_config"] | {"vocab_size": 40_000, "hidden_size": 384, "intermediate_size": 40_000}
    config = complete(CONFIG | {"text_config": text | {"num_attention_heads": 6}})
    tensors = {name: np.full(shape, 0.1, np.float16) for name, shape in families.parameters(config).items()}
    return write_hf(tmp_path_factory.mktemp("large"), model=SimpleNamespace(parameters=lambda: tensors), config=config)


@pytest.mark.parametrize("arguments", [(), ("--dtype", "bfloat16"), ("-q",)])
def test_memory_stays_within_the_promise(tmp_path, large, arguments):
    """Peak memory at most twice the largest tensor and 150 MB, for a model that is larger than that."""
    sizes = [tensor.nbytes for tensor in open_source(large).tensors.values()]
    promise = 2 * max(sizes) + 150e6
    done = python(PEAK + MAIN.format(arguments=llava(large, tmp_path / "mlx", *arguments)))
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    print(f"peak {peak / 1e6:.0f} MB, largest tensor {max(sizes) / 1e6:.0f} MB, model {sum(sizes) / 1e6:.0f} MB")
    assert peak <= promise < sum(sizes)
