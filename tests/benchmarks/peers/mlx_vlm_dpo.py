"""mlx-vlm's own DPO training on the pair, as it ships: two models, four whole sequences, the image seen in each.

Its LLaVA processor fails with transformers 5, so it is given what that would give: ids, masks and pixels. For LLaVA its
log-probabilities are wrong, since the padding mask takes the causal one's place (see the benchmarks README);
the work is the same.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

import mlx.core as mx
import mlx.optimizers as optim
from meter import Meter, report
from mlx_vlm.trainer.common.callbacks import TrainingCallback
from mlx_vlm.trainer.peft.utils import get_peft_model
from mlx_vlm.trainer.vlm.dpo.trainer import DPOTrainingArgs, train_dpo
from mlx_vlm.utils import load_model
from shape import BETA, LEARNING_RATE, RANK, SCALE, given

from mlx_visalign.data.images import Preprocessing, open_image
from mlx_visalign.utils.files import read_json


class Watch(TrainingCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.meter = Meter()

    def on_train_loss_report(self, train_info: dict) -> None:
        self.meter.mark()
        self.losses.append(train_info["train_loss"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    model, reference = load_model(options.folder), load_model(options.folder)
    get_peft_model(model, rank=RANK, alpha=SCALE * RANK, dropout=0.0, verbose=False)
    mx.eval(model.parameters(), reference.parameters())
    dataset = [both_sides(options.folder)]
    watch = Watch()
    with TemporaryDirectory() as folder:
        settings = DPOTrainingArgs(
            iters=options.steps + 1, beta=BETA, steps_per_report=1, adapter_file=str(Path(folder, "adapters.safetensors"))
        )
        optimizer = optim.AdamW(LEARNING_RATE)
        train_dpo(model, reference, optimizer, dataset, args=settings, training_callback=watch, seed=0)
    report(("mlx", "mlx-vlm"), **watch.meter.steps(), memory=watch.meter.memory(), loss=watch.losses[0])


def both_sides(folder: Path) -> dict:
    """The pair as mlx-vlm's PreferenceVisionDataset makes it."""
    pair = given(folder)
    preprocessing = Preprocessing.from_config(read_json(folder / "preprocessor_config.json"), "pad")
    pixels = preprocessing(open_image(pair.image)).transpose(2, 0, 1)[None]
    mx.eval(pixels)
    sides = {}
    for name, answer in zip(("chosen", "rejected"), pair.answer_ids, strict=True):
        ids = mx.array([pair.prompt_ids + answer])
        completion = (mx.arange(ids.shape[1])[None] >= len(pair.prompt_ids)).astype(mx.int32)
        text = {"input_ids": ids, "attention_mask": mx.ones_like(ids), "completion_mask": completion}
        sides[name] = text | {"pixel_values": pixels}
    return sides


if __name__ == "__main__":
    main()
