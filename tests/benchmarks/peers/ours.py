"""Our own training on one pair. A step has image features and reference in hand; the pass that makes them is `once`."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

import mlx.core as mx
from meter import Meter, report
from shape import BETA, LEARNING_RATE, RANK, SCALE, given

from mlx_visalign.data.records import Pair
from mlx_visalign.inference.policy import load
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs, with_reference


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--pairs", type=int, default=1, help="of one update, one after the other")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    device = {"cpu": mx.cpu, "gpu": mx.gpu}[options.device]
    if not mx.is_available(device):
        sys.exit("no GPU found")
    mx.set_default_device(device)
    policy, pair = load(options.folder), given(options.folder)
    once = Meter()
    once.mark()
    [scored] = with_reference(policy, [Pair("0", (pair.image,), pair.question, *pair.answers)])
    once.mark()
    settings = PreferenceSettings(
        beta=BETA,
        iters=options.steps + 1,
        grad_accumulation_steps=options.pairs,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        grad_checkpoint=options.checkpoint,
        lora=LoRASettings(RANK, SCALE),
    )
    rows, meter = [], meter_of(options.device)

    def after(row: dict) -> None:
        meter.mark()
        rows.append(row)

    with TemporaryDirectory() as folder:
        train_on_pairs(policy, [scored], settings, Path(folder), seed=0, on_metrics=after)
    figures = {"loss": rows[0]["train_loss"], "logps": [rows[0]["chosen_logps"], rows[0]["rejected_logps"]]}
    report(("mlx", "mlx-visalign"), **meter.steps(), memory=meter.memory(), once=once.steps(), **figures)


def meter_of(device: str) -> Meter:
    if device == "cpu":
        return Meter()
    mx.reset_peak_memory()
    return Meter(mx.get_peak_memory, mx.get_active_memory())


if __name__ == "__main__":
    main()
