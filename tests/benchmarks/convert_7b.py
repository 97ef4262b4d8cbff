"""Converts a model of LLaVA-1.5-7B's shape, with random float16 weights, and compares with `cp` and mlx-vlm.

    python tests/benchmarks/convert_7b.py FOLDER             needs 29 GB there; takes minutes
    python tests/benchmarks/convert_7b.py FOLDER --scale 16  the same with everything a sixteenth as wide and deep

Every row is a process of its own, measured from outside: wall time and the most memory it ever held. What it writes is
deleted again. All of them read files that the system may still hold in memory.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

# This process imports nothing large: on Linux a child's peak begins with the memory of the process that started it.
ROOT = Path(__file__).parents[2]
WORDS_AND_PIXELS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder to work in; deleted at the end")
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2, 4, 8, 16), help="how many times smaller")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)  # the source alone, in a process of its own
    options = parser.parse_args()
    if options.write:
        write_source(options.folder, options.scale)
        return
    options.folder.mkdir(parents=True)
    try:
        benchmark(options.folder, options.scale)
    finally:
        shutil.rmtree(options.folder)


def benchmark(folder: Path, scale: int) -> None:
    need = 29e9 / scale**2
    if shutil.disk_usage(folder).free < need:
        sys.exit(f"{need / 1e9:.1f} GB are needed at {folder}.")
    source, output = folder / "hf", folder / "out"
    measure([sys.executable, __file__, str(source), "--scale", str(scale), "--write"])
    size = sum(file.stat().st_size for file in source.iterdir())
    print(f"{size / 1e9:.2f} GB of float16 in {len(list(source.glob('*.safetensors')))} files\n")
    print(f"{'':34} {'wall':>8} {'MB/s':>7} {'peak':>8} {'written':>9}")
    ours = [sys.executable, "-m", "mlx_visalign", "convert", "llava", "--hf-path", str(source), "--mlx-path", str(output)]
    theirs = [sys.executable, "-m", "mlx_vlm", "convert", "--hf-path", str(source), "--mlx-path", str(output)]
    rows = {
        "cp -R": ["cp", "-R", str(source), str(output)],
        "visalign convert": ours,
        "visalign convert --verify": [*ours, "--verify"],
        "visalign convert -q": [*ours, "-q"],
        "mlx_vlm convert --dtype float16": [*theirs, "--dtype", "float16"],
        "mlx_vlm convert -q": [*theirs, "-q", "--dtype", "float16"],
    }
    for name, command in rows.items():
        seconds, peak = measure(command)
        written = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        shutil.rmtree(output)
        print(
            f"{name:34} {seconds:6.1f} s {size / 1e6 / seconds:7.0f} {peak / 1e6:5.0f} MB {written / 1e9:6.2f} GB", flush=True
        )


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds, and the most bytes of memory held at once."""
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read() if child.stderr else b""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss * RSS_UNIT


def write_source(folder: Path, scale: int) -> None:
    """A Hugging Face folder in the classic layout, one tensor in memory at a time."""
    import numpy as np

    from mlx_visalign.convert.io.folder import write_json, write_weights
    from mlx_visalign.convert.io.tensors import Tensor
    from mlx_visalign.convert.layouts.llava_names import LAYOUTS
    from mlx_visalign.models import families

    rng = np.random.default_rng(0)

    def random(tensor: Tensor) -> np.ndarray:
        """Any sign and digits, sizes from 1/64 to 1/32: made of bits, for normal numbers would take longer than all else."""
        bits = np.frombuffer(rng.bytes(tensor.nbytes), np.uint16)
        return (bits & np.uint16(0x83FF) | np.uint16(0x2400)).view(np.float16).reshape(tensor.shape)

    config = make_config(scale)
    shapes = LAYOUTS["classic"].table().inverse.through(families.parameters(config))
    folder.mkdir()
    write_json(folder / "config.json", config)
    tensors = [Tensor(name, "F16", shape) for name, shape in shapes.items()]
    write_weights(folder, tensors, random, {"format": "pt"}, lambda _: None)
    for name in WORDS_AND_PIXELS:  # mlx-vlm converts no folder without them
        shutil.copyfile(ROOT / "mlx_visalign" / "tiny_world" / "tiny" / "llava" / name, folder / name)


def make_config(scale: int) -> dict:
    """llava-hf/llava-1.5-7b-hf's, everything spelled out, with `scale` times fewer layers, heads, widths and words."""
    from mlx_visalign.convert.layouts.llava_config import complete

    text = {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text |= {"num_attention_heads": 32}
    parts = {"text_config": (text, {"rms_norm_eps": 1e-5}), "vision_config": (vision, {"image_size": 336, "patch_size": 14})}
    shrunk = {name: {key: max(1, size // scale) for key, size in sizes.items()} | rest for name, (sizes, rest) in parts.items()}
    return complete({"model_type": "llava", "image_token_index": 4, **shrunk})


if __name__ == "__main__":
    main()
