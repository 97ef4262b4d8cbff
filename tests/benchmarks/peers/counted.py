"""The counted TFLOP of a DPO step at LLaVA-1.5-7B's shapes, ours and mlx-vlm's, from tests/benchmarks/flops.py."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
from flops import dpo_stages
from meter import report
from weightless import make_photos


def main() -> None:
    mx.disable_compile()
    with TemporaryDirectory() as folder:
        step, hot, imported, _ = dpo_stages(make_photos(Path(folder), 1)[0])
    ours = {"step": step, "step with its reference, prefix hot": hot, "step with its reference, pair imported": imported}
    report((), tflop={name: stage.ours / 1e12 for name, stage in ours.items()} | {"mlx-vlm": step.others / 1e12})


if __name__ == "__main__":
    main()
